"""Known gradients of the recurrent cells: writes gradients_<rnn|lstm|gru>_<case>.safetensors beside this script.

The answers are those of torch.autograd through torch.nn.RNN, LSTM and GRU in f64; with lengths, through packed
sequences.

    inputs   those of recurrent.py, and with lengths lengths [batch], 1 to seq_len (whole numbers)
             grad_output, grad_h_n, grad_c_n: the gradients that arrive, each shaped like its output; absent: zero
    outputs  output, h_n, c_n, and for each input x but the lengths grad_x of the same shape
"""

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from store import random, save, seed

CELLS = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}

SIZES = {"seq_len": 6, "batch": 3, "input_size": 4, "hidden_size": 5}
ALL = ("output", "h_n", "c_n")
BOTH = {"num_layers": 2, "bidirectional": True}

# options of the module, lengths, the gradients that arrive
CASES = {
    "plain": ({}, None, ALL),
    "no_bias": ({"bias": False}, None, ("output",)),
    "two_layers_bidirectional": (BOTH, None, ALL),
    "lengths": (BOTH, [6, 1, 4], ALL),
    "h_n": ({"num_layers": 2}, None, ("h_n",)),
}
LSTM_CASES = CASES | {
    "c_n": ({}, None, ("c_n",)),
    "projection": (BOTH | {"proj_size": 3}, [6, 2, 5], ALL),
}
RNN_CASES = CASES | {"relu": ({"nonlinearity": "relu"}, None, ALL)}


def answer(cell, case, options, lengths, arriving):
    name = f"gradients_{cell}_{case}"
    seed(name)
    module = CELLS[cell](SIZES["input_size"], SIZES["hidden_size"], **options).double()
    for parameter in module.parameters():
        # larger than PyTorch's own, so that the gradients of the first steps do not vanish
        parameter.data = random(*parameter.shape, spread=1.5 * SIZES["hidden_size"] ** -0.5)
    shape = (SIZES["seq_len"], SIZES["batch"], SIZES["input_size"])
    count = module.num_layers * (2 if module.bidirectional else 1)
    h_shape = (count, SIZES["batch"], module.proj_size or SIZES["hidden_size"])
    inputs = {"input": random(*shape), "h_0": random(*h_shape, spread=0.5)}
    if cell == "lstm":
        inputs["c_0"] = random(count, SIZES["batch"], SIZES["hidden_size"], spread=0.8)
    for tensor in inputs.values():
        tensor.requires_grad_()

    states = (inputs["h_0"], inputs["c_0"]) if cell == "lstm" else inputs["h_0"]
    sequence = inputs["input"]
    if lengths:
        sequence = pack_padded_sequence(sequence, torch.tensor(lengths), enforce_sorted=False)
    output, last = module(sequence, states)
    if lengths:
        output, _ = pad_packed_sequence(output, total_length=SIZES["seq_len"])
    outputs = {"output": output} | (
        {"h_n": last[0], "c_n": last[1]} if cell == "lstm" else {"h_n": last}
    )
    upstream = {name: random(*outputs[name].shape) for name in arriving if name in outputs}
    sum((outputs[name] * gradient).sum() for name, gradient in upstream.items()).backward()

    gradients = {f"grad_{name}": tensor.grad for name, tensor in inputs.items()}
    gradients |= {f"grad_{name}": p.grad for name, p in module.named_parameters()}
    zero = {name: torch.zeros(()) for name, gradient in gradients.items() if gradient is None}
    assert not zero, f"{name}: {list(zero)} have no gradient"
    small = [name for name, gradient in gradients.items() if gradient.abs().max() < 1e-4]
    assert not small, f"{name}: the gradients of {small} vanish"
    if lengths:
        padding = torch.arange(SIZES["seq_len"])[:, None] >= torch.tensor(lengths)
        assert gradients["grad_input"][padding].abs().max() == 0, f"{name}: gradients of the padding"

    extra = {"lengths": torch.tensor(lengths, dtype=torch.float64)} if lengths else {}
    save(
        name,
        inputs
        | dict(module.named_parameters())
        | extra
        | {f"grad_{name}": gradient for name, gradient in upstream.items()},
        outputs | gradients,
        {"op": cell} | ({"nonlinearity": module.nonlinearity} if cell == "rnn" else {}),
    )


def main():
    for cell in CELLS:
        cases = {"rnn": RNN_CASES, "lstm": LSTM_CASES, "gru": CASES}[cell]
        for case, (options, lengths, arriving) in cases.items():
            answer(cell, case, options, lengths, arriving)


main()
