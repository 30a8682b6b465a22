"""PyTorch's RNN, LSTM and GRU, on the CPU or a CUDA device (cuDNN), as rows of `gatefold bench -o json`:

    python benches/peers/torch_recurrent.py --device cuda --hidden-size 256,512,1024,2048 > FILE
    python benches/peers/torch_recurrent.py --cell lstm,gru --batch 1,16 --grad

Options multiply out. Every timed call gets an input of its own; the weights stay, as they do between the steps of a
model. CUDA is timed with events, the CPU with the wall clock. The output is compared with f64 before it is timed.
"""

import argparse
import copy
import itertools
import json
import sys

import torch

from torch_timing import DTYPES, facts, measured, numbers, times

CELLS = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}

# Inputs that take turns.
SETS = 8

# Steps of a sequence that are compared.
COMPARED = 64


class Case:
    def __init__(self, cell, batch, seq_len, hidden_size, arguments):
        self.cell, self.batch, self.seq_len, self.hidden_size = cell, batch, seq_len, hidden_size
        self.input_size = arguments.input_size or hidden_size
        self.arguments = arguments
        self.options = {"device": arguments.device, "dtype": DTYPES[arguments.dtype]}
        self.module = CELLS[cell](self.input_size, hidden_size, num_layers=arguments.layers, **self.options)

    def fresh(self):
        """input, grad_output"""
        shape = (self.seq_len, self.batch)
        given = torch.randn(*shape, self.input_size, **self.options, requires_grad=self.arguments.grad)
        return given, torch.randn(*shape, self.hidden_size, **self.options)

    def run(self, tensors):
        given, grad_output = tensors
        output = self.module(given)[0]
        if self.arguments.grad:
            torch.autograd.grad(output, (given, *self.module.parameters()), grad_output)
        return output

    def error(self):
        """The worst error of an element of the first outputs, relative to its row."""
        given = self.fresh()[0].detach()[:COMPARED]
        exact = copy.deepcopy(self.module).cpu().double()
        want = exact(given.cpu().double())[0]
        difference = (self.module(given)[0].cpu().double() - want).abs().amax(dim=-1)
        return (difference / want.abs().amax(dim=-1)).max().item()

    def row(self):
        with torch.no_grad():
            error = self.error()
        with torch.set_grad_enabled(self.arguments.grad):
            sets = [self.fresh() for _ in range(SETS)]
            device, seconds = self.arguments.device, self.arguments.seconds
            timing = measured(times(self.run, sets, device, seconds), device)
        median = timing["median_us"]
        widths = self.input_size + self.hidden_size + (self.arguments.layers - 1) * 2 * self.hidden_size
        # backward two products for each of the forward pass
        products = 3 if self.arguments.grad else 1
        flops = products * 2 * self.seq_len * self.batch * GATES[self.cell] * self.hidden_size * widths
        return {
            "op": self.cell,
            "shape": {
                "batch": self.batch,
                "seq_len": self.seq_len,
                "input_size": self.input_size,
                "hidden_size": self.hidden_size,
                "layers": self.arguments.layers,
            },
            "grad": self.arguments.grad,
            "dtype": self.arguments.dtype,
            "variant": "torch",
            **timing,
            "us_per_step": median / self.seq_len,
            "gflops": flops / median / 1e3,
            "error": error,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--grad", action="store_true", help="forward and backward")
    parser.add_argument("--tf32", action="store_true", help="let CUDA round f32 products to TF32")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--cell", default="lstm", help=f"of: {', '.join(CELLS)}")
    parser.add_argument("--batch", type=numbers, default=[1])
    parser.add_argument("--seq-len", type=numbers, default=[64])
    parser.add_argument("--hidden-size", type=numbers, default=[256])
    parser.add_argument("--input-size", type=int, help="[default: the hidden size]")
    parser.add_argument("--layers", type=int, default=1)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    torch.backends.cudnn.allow_tf32 = arguments.tf32
    result = {"schema": 1, **facts(arguments.device), "tf32": arguments.tf32, "rows": []}
    cells = arguments.cell.split(",")
    if unknown := [name for name in cells if name not in CELLS]:
        sys.exit(f"unknown cell {unknown[0]}; there are {', '.join(CELLS)}")
    for case in itertools.product(cells, arguments.batch, arguments.seq_len, arguments.hidden_size):
        row = Case(*case, arguments).row()
        print(f"{row['op']} {row['shape']}: {row['us_per_step']:.2f} us per step", file=sys.stderr)
        result["rows"].append(row)
    json.dump(result, sys.stdout, indent=1)
    print()


main()
