"""Known answers for the recurrent cells: writes <rnn|lstm|gru>_<case>.safetensors beside this script.

The answers are those of torch.nn.RNN, LSTM and GRU in f64.

    inputs   input [seq_len, batch, input_size]
             weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ..._reverse, ..._l1: PyTorch's names, shapes and
             order of gates (LSTM i, f, g, o; GRU r, z, n with the reset gate after the product);
             of the projections weight_hr_l0 [proj_size, hidden_size], ...
             h_0 (proj_size wide where there is a projection), and for LSTM c_0, [num_layers * directions, batch, hidden_size]; absent: zero
    outputs  output [seq_len, batch, directions * hidden_size]
             h_n, and for LSTM c_n, [num_layers * directions, batch, hidden_size]
"""

import torch

from store import random, save, seed

CELLS = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}

SMALL = {"seq_len": 7, "batch": 3, "input_size": 5, "hidden_size": 6}
LONG = {"seq_len": 65, "batch": 1, "input_size": 2, "hidden_size": 33}

# sizes; options of the module; whether there are initial states
CASES = {
    "plain": (SMALL, {}, True),
    "no_bias": (SMALL, {"bias": False}, False),
    "bidirectional": (SMALL, {"bidirectional": True}, True),
    "two_layers": (SMALL, {"num_layers": 2}, True),
    "two_layers_bidirectional": (SMALL, {"num_layers": 2, "bidirectional": True}, True),
    "batch_1": (LONG, {}, True),
    "saturated": (SMALL, {}, True),
}
LSTM_CASES = CASES | {
    "projection": (SMALL, {"proj_size": 4}, True),
    "projection_two_layers_bidirectional": (
        SMALL,
        {"proj_size": 4, "num_layers": 2, "bidirectional": True},
        True,
    ),
}
RNN_CASES = CASES | {"relu": (SMALL, {"nonlinearity": "relu"}, True)}

# weight_ih of the saturated case: with input_size 5 the gates are about +-200 before their activation
SATURATING_SPREAD = 80.0


def fill(module, hidden_size, saturated):
    """Random parameters, every gate its own; not PyTorch's initialisation, which may change."""
    for name, parameter in module.named_parameters():
        spread = SATURATING_SPREAD if saturated and name.startswith("weight_ih") else hidden_size**-0.5
        parameter.data = random(*parameter.shape, spread=spread)


def check_is_telling(name, module, input, output, saturated):
    """The outputs move with time, and only the saturated case is saturated."""
    moving = (output.std(dim=0) > 1e-3).double().mean()
    assert output.isfinite().all() and output.std() > 0.1 and moving > 0.8, f"{name}: trivial"
    gates = (input @ module.weight_ih_l0.T).abs()
    if saturated:
        assert gates.max() > 300 and 100 < gates.median() < 300, f"{name}: is not saturated"
    else:
        assert gates.max() < 20 and gates.median() > 0.1, f"{name}: is saturated"


def answer(cell, case, sizes, options, with_states):
    name = f"{cell}_{case}"
    seed(name)
    saturated = case == "saturated"
    module = CELLS[cell](sizes["input_size"], sizes["hidden_size"], **options).double()
    fill(module, sizes["hidden_size"], saturated)
    input = random(sizes["seq_len"], sizes["batch"], sizes["input_size"], outliers=4)

    directions = 2 if module.bidirectional else 1
    state_shape = (module.num_layers * directions, sizes["batch"], sizes["hidden_size"])
    h_shape = (*state_shape[:2], options.get("proj_size", sizes["hidden_size"]))
    states = {"h_0": random(*h_shape, spread=0.5)}
    if cell == "lstm":
        states["c_0"] = random(*state_shape, spread=0.8)

    with torch.no_grad():
        if not with_states:
            output, last = module(input)
        elif cell == "lstm":
            output, last = module(input, (states["h_0"], states["c_0"]))
        else:
            output, last = module(input, states["h_0"])
    check_is_telling(name, module, input, output, saturated)

    save(
        name,
        {"input": input} | dict(module.named_parameters()) | (states if with_states else {}),
        {"output": output} | ({"h_n": last[0], "c_n": last[1]} if cell == "lstm" else {"h_n": last}),
        {"op": cell} | ({"nonlinearity": module.nonlinearity} if cell == "rnn" else {}),
    )


def main():
    for cell in CELLS:
        cases = {"rnn": RNN_CASES, "lstm": LSTM_CASES, "gru": CASES}[cell]
        for case, (sizes, options, with_states) in cases.items():
            answer(cell, case, sizes, options, with_states)


main()
