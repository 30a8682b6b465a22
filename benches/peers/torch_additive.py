"""PyTorch on the CPU, additive attention as its users write it: `python benches/peers/torch_additive.py > FILE`.

Eager, f32, all threads; medians of at least 5 runs after 2 to warm up. `[batch, q_len, kv_len, dim]` is
materialised, as in every peer.
"""

import json
import platform
import statistics
import time

import torch


def median_us(run, seconds=2.0):
    for _ in range(2):
        run()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def tensors(batch, q_len, kv_len, dim, value_dim, grad):
    shapes = [(batch, q_len, dim), (batch, kv_len, dim), (batch, kv_len, value_dim), (dim,)]
    return [torch.randn(shape, requires_grad=grad) for shape in shapes]


def attention(query, key, value, v):
    score = torch.tanh(query[:, :, None, :] + key[:, None, :, :]) @ v
    return torch.softmax(score, dim=-1) @ value


def forward(*shape):
    inputs = tensors(*shape, grad=False)

    def run():
        with torch.inference_mode():
            attention(*inputs)

    return run


def both(*shape):
    inputs = tensors(*shape, grad=True)
    grad_output = torch.randn(shape[0], shape[1], shape[4])

    def run():
        torch.autograd.grad(attention(*inputs), inputs, grad_output)

    return run


SHAPES = [(8, 64, 64, 128, 128), (1, 512, 512, 64, 64), (8, 64, 64, 512, 512), (16, 1, 512, 128, 128)]

rows = []
for shape in SHAPES:
    for name, make in (("forward", forward), ("forward and backward", both)):
        rows.append({"shape": shape, "pass": name, "median_us": median_us(make(*shape))})
facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
print(json.dumps({**facts, "rows": rows}, indent=1))
