"""PyTorch on the CPU, the shapes of the README's table: `python benches/peers/torch_cpu.py > FILE`.

f32, all threads; forward without gradients, or forward and backward ("grad": of the sum of the outputs, to the
input and all parameters); medians of at least 20 runs after 5 to warm up.
"""

import json
import platform
import statistics
import time

import torch


def median_us(run, grad=False, seconds=2.0):
    with torch.inference_mode(not grad):
        for _ in range(5):
            run()
        times = []
        end = time.perf_counter() + seconds
        while len(times) < 20 or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def attention(batch, heads, q_len, kv_len, head_dim):
    q, k, v = (torch.randn(batch, heads, n, head_dim) for n in (q_len, kv_len, kv_len))
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def recurrent(cell, batch, seq_len, input_size, hidden_size):
    module = cell(input_size, hidden_size)
    x = torch.randn(seq_len, batch, input_size)
    return lambda: module(x)


def training(cell, batch, seq_len, input_size, hidden_size):
    module = cell(input_size, hidden_size)
    x = torch.randn(seq_len, batch, input_size, requires_grad=True)
    grad_output = torch.randn(seq_len, batch, hidden_size)
    wanted = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x)[0], wanted, grad_output)


CASES = {
    "attention 1 x 8 x 512 x 64": (attention(1, 8, 512, 512, 64), None),
    "lstm 256, batch 1, 64 steps": (recurrent(torch.nn.LSTM, 1, 64, 256, 256), 64),
    "lstm 256, batch 16, 64 steps": (recurrent(torch.nn.LSTM, 16, 64, 256, 256), 64),
    "lstm 512, batch 1, 64 steps": (recurrent(torch.nn.LSTM, 1, 64, 512, 512), 64),
    "gru 256, batch 1, 64 steps": (recurrent(torch.nn.GRU, 1, 64, 256, 256), 64),
}

GRAD_CASES = {
    "lstm 256, batch 1, 64 steps, grad": (training(torch.nn.LSTM, 1, 64, 256, 256), 64),
    "lstm 256, batch 16, 64 steps, grad": (training(torch.nn.LSTM, 16, 64, 256, 256), 64),
    "gru 256, batch 1, 64 steps, grad": (training(torch.nn.GRU, 1, 64, 256, 256), 64),
}

rows = []
for name, (run, steps) in (CASES | GRAD_CASES).items():
    us = median_us(run, name in GRAD_CASES)
    rows.append({"case": name, "median_us": us, "us_per_step": us / steps if steps else None})
facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
print(json.dumps({**facts, "rows": rows}, indent=1))
