"""PyTorch's scaled_dot_product_attention, on the CPU or a CUDA device, as rows of `gatefold bench -o json`:

    python benches/peers/torch_attention.py --device cuda --grad --preset bert,gpt2 > FILE
    python benches/peers/torch_attention.py --heads 8 --q-len 512,1024 --head-dim 64 --causal

Options multiply out. Every timed call gets inputs that were not touched since they were made: they rotate through
enough sets to pass the caches. CUDA is timed with events, the CPU with the wall clock. `--backend` forces one of
PyTorch's implementations. The output is compared with f64 before it is timed: on a sample of rows, where the whole is
too much.
"""

import argparse
import contextlib
import itertools
import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from torch_timing import DTYPES, facts, measured, numbers, times

# batch, heads, kv_heads, q_len, kv_len, head_dim, causal; the catalogue of cubek-attention
PRESETS = {
    "bert": (8, 12, 12, 128, 128, 64, False),
    "gpt2": (4, 12, 12, 1024, 1024, 64, True),
    "llama": (4, 32, 32, 2048, 2048, 128, False),
    "long-context": (1, 16, 16, 4096, 4096, 128, False),
    "encoder-decoder": (2, 16, 16, 512, 1024, 128, False),
    "lfm2": (1, 32, 8, 4096, 4096, 64, False),
    "causal": (1, 4, 4, 4096, 4096, 64, True),
    # its shapes of the backward pass
    "short-causal": (1, 4, 4, 512, 512, 64, True),
    "llama-gqa": (1, 32, 8, 2048, 2048, 128, False),
    # of the README's table
    "small": (1, 8, 8, 512, 512, 64, False),
    "decode": (1, 32, 8, 1, 4096, 64, False),
}

BACKENDS = {
    "auto": None,
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}

# Bytes of inputs that are more than any cache holds.
CACHES = 256 << 20

# Multiply-adds that the comparison in f64 may take.
AFFORDABLE = 2e9


class Case:
    def __init__(self, row, arguments):
        self.batch, self.heads, self.kv_heads, self.q_len, self.kv_len, self.head_dim, self.causal = row
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.shapes = [
            (self.batch, self.heads, self.q_len, self.head_dim),
            (self.batch, self.kv_heads, self.kv_len, self.head_dim),
            (self.batch, self.kv_heads, self.kv_len, self.head_dim),
        ]

    def fresh(self):
        """query, key, value, grad_output"""
        options = {"device": self.device, "dtype": DTYPES[self.arguments.dtype]}
        tensors = [torch.randn(shape, **options) for shape in [*self.shapes, self.shapes[0]]]
        for tensor in tensors[:3]:
            tensor.requires_grad_(self.arguments.grad)
        return tensors

    def forward(self, query, key, value):
        grouped = {"enable_gqa": True} if self.heads != self.kv_heads else {}
        return scaled_dot_product_attention(query, key, value, is_causal=self.causal, **grouped)

    def run(self, tensors):
        query, key, value, grad_output = tensors
        output = self.forward(query, key, value)
        if self.arguments.grad:
            torch.autograd.grad(output, (query, key, value), grad_output)
        return output

    def backend(self):
        backend = BACKENDS[self.arguments.backend]
        return contextlib.nullcontext() if backend is None else sdpa_kernel(backend)

    def pairs(self):
        """Of a query and a key that it attends, over all heads."""
        keys = [min(i + 1, self.kv_len) for i in range(self.q_len)] if self.causal else [self.kv_len] * self.q_len
        return self.batch * self.heads * sum(keys)

    def error(self):
        """The worst error of an element of the output, relative to its row, of a sample of the queries."""
        query, key, value, _ = self.fresh()
        output = self.forward(query, key, value).detach()
        cost = self.batch * self.heads * self.kv_len * 2 * self.head_dim
        count = min(self.q_len, max(8, int(AFFORDABLE / cost)))
        at = torch.linspace(0, self.q_len - 1, count, device=self.device).long().unique()
        key, value = (x.detach().double().repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (key, value))
        scores = query.detach().double()[:, :, at] @ key.transpose(-1, -2) * self.head_dim**-0.5
        if self.causal:
            hidden = torch.arange(self.kv_len, device=self.device) > at[:, None]
            scores = scores.masked_fill(hidden, -torch.inf)
        want = scores.softmax(dim=-1) @ value
        difference = (output[:, :, at].double() - want).abs().amax(dim=-1)
        return (difference / want.abs().amax(dim=-1)).max().item()

    def times(self):
        """Microseconds of each call."""
        size = 4 * sum(torch.Size(shape).numel() for shape in [*self.shapes, self.shapes[0]])
        sets = [self.fresh() for _ in range(max(2, min(64, CACHES // size)))]
        return times(self.run, sets, self.arguments.device, self.arguments.seconds)

    def row(self):
        with self.backend(), torch.set_grad_enabled(self.arguments.grad):
            error = self.error()
            timing = measured(self.times(), self.arguments.device)
        # two products forward; backward five more
        products = 7 if self.arguments.grad else 2
        return {
            "op": "attention",
            "shape": {
                "batch": self.batch,
                "heads": self.heads,
                "kv_heads": self.kv_heads,
                "q_len": self.q_len,
                "kv_len": self.kv_len,
                "head_dim": self.head_dim,
                "value_dim": self.head_dim,
                "causal": "top-left" if self.causal else None,
            },
            "grad": self.arguments.grad,
            "dtype": self.arguments.dtype,
            "variant": f"torch-{self.arguments.backend}",
            **timing,
            "gflops": products * 2 * self.pairs() * self.head_dim / timing["median_us"] / 1e3,
            "error": error,
        }


def cases(arguments):
    if arguments.preset:
        names = PRESETS if arguments.preset == "all" else arguments.preset.split(",")
        unknown = [name for name in names if name not in PRESETS]
        if unknown:
            sys.exit(f"unknown preset {unknown[0]}; there are {', '.join(PRESETS)}")
        return [PRESETS[name] for name in names]
    given = itertools.product(arguments.batch, arguments.heads, arguments.q_len, arguments.head_dim)
    return [
        (batch, heads, arguments.kv_heads or heads, q_len, arguments.kv_len or q_len, head_dim, arguments.causal)
        for batch, heads, q_len, head_dim in given
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--grad", action="store_true", help="forward and backward")
    parser.add_argument("--tf32", action="store_true", help="let CUDA round f32 products to TF32")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--preset", help=f"all, or of: {', '.join(PRESETS)}")
    parser.add_argument("--batch", type=numbers, default=[1])
    parser.add_argument("--heads", type=numbers, default=[8])
    parser.add_argument("--kv-heads", type=int)
    parser.add_argument("--q-len", type=numbers, default=[512])
    parser.add_argument("--kv-len", type=int)
    parser.add_argument("--head-dim", type=numbers, default=[64])
    parser.add_argument("--causal", action="store_true")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    result = {"schema": 1, **facts(arguments.device), "tf32": arguments.tf32, "rows": []}
    for case in cases(arguments):
        row = Case(case, arguments).row()
        print(f"{row['shape']}: {row['median_us']:.0f} us, {row['gflops']:.1f} GFLOP/s", file=sys.stderr)
        result["rows"].append(row)
    json.dump(result, sys.stdout, indent=1)
    print()


main()
