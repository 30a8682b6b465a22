"""Known answers for minGRU and minLSTM: writes <mingru|minlstm>_<case>.safetensors beside this script.

The formulas are those of Feng et al. 2024, "Were RNNs all we needed?", sections 3.1 and 3.2, as they stand there:
one step after another, in f64, with the gradients of PyTorch's autograd.

    inputs   input [seq_len, batch, input_size]
             weight_l0 [gates * hidden_size, input_size], bias_l0, weight_l1, ...: gates z, n or f, i, n
             h_0 [num_layers, batch, hidden_size]; absent: zero
             lengths [batch]; absent: seq_len
             grad_output, grad_h_n: gradients that arrive
    outputs  output [seq_len, batch, hidden_size], h_n like h_0
             grad_<input> for every input
"""

import torch

from store import random, save, seed

SIZES = {"seq_len": 9, "batch": 3, "input_size": 5, "hidden_size": 6}

# layers; whether there are biases and initial states; lengths; candidate
CASES = {
    "plain": (1, True, True, None, "linear"),
    "no_bias": (1, False, False, None, "linear"),
    "positive": (1, True, True, None, "positive"),
    "two_layers": (2, True, True, None, "linear"),
    "lengths": (2, True, True, [9, 0, 4], "linear"),
}


def g(x, candidate):
    """The appendix's g keeps states positive."""
    return x if candidate == "linear" else torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def step(cell, x, h, weight, bias, candidate):
    gates = x @ weight.T + (0.0 if bias is None else bias)
    if cell == "mingru":
        z, n = gates.chunk(2, dim=-1)
        z = torch.sigmoid(z)
        return (1 - z) * h + z * g(n, candidate)
    f, i, n = gates.chunk(3, dim=-1)
    f, i = torch.sigmoid(f), torch.sigmoid(i)
    return f / (f + i) * h + i / (f + i) * g(n, candidate)


def layer(cell, input, h, weight, bias, lengths, candidate):
    outputs = []
    for time, x in enumerate(input):
        inside = torch.tensor([[time < length] for length in lengths])
        after = step(cell, x, h, weight, bias, candidate)
        h = torch.where(inside, after, h)
        outputs.append(torch.where(inside, after, torch.zeros_like(after)))
    return torch.stack(outputs), h


def answer(cell, case):
    name = f"{cell}_{case}"
    seed(name)
    layers, has_bias, has_states, lengths, candidate = CASES[case]
    seq_len, batch, size, hidden = SIZES.values()
    rows = {"mingru": 2, "minlstm": 3}[cell] * hidden
    inputs = {"input": random(seq_len, batch, size, outliers=4)}
    for i in range(layers):
        width = size if i == 0 else hidden
        inputs[f"weight_l{i}"] = random(rows, width, spread=1.5 * width**-0.5)
        if has_bias:
            inputs[f"bias_l{i}"] = random(rows, spread=0.5)
    if has_states:
        inputs["h_0"] = random(layers, batch, hidden)
    for tensor in inputs.values():
        tensor.requires_grad_()

    x, last = inputs["input"], []
    for i in range(layers):
        h = inputs["h_0"][i] if has_states else torch.zeros(batch, hidden, dtype=torch.float64)
        weight, bias = inputs[f"weight_l{i}"], inputs.get(f"bias_l{i}")
        x, h = layer(cell, x, h, weight, bias, lengths or [seq_len] * batch, candidate)
        last.append(h)
    outputs = {"output": x, "h_n": torch.stack(last)}
    arriving = {"grad_output": random(*x.shape, spread=0.5), "grad_h_n": random(layers, batch, hidden)}
    sum((outputs[key] * arriving[f"grad_{key}"]).sum() for key in outputs).backward()
    gradients = {f"grad_{key}": tensor.grad for key, tensor in inputs.items()}
    assert x.std(dim=0).mean() > 0.05 and x.isfinite().all(), f"{name}: trivial"

    inputs = {key: tensor.detach() for key, tensor in inputs.items()} | arriving
    if lengths:
        inputs["lengths"] = torch.tensor(lengths, dtype=torch.float64)
    save(name, inputs, outputs | gradients, {"op": cell, "candidate": candidate})


def main():
    for cell in ("mingru", "minlstm"):
        for case in CASES:
            answer(cell, case)


main()
