"""What the scripts that run PyTorch share: the clock, and the facts that stand at the head of a result."""

import platform
import statistics
import time

import torch

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def times(run, sets, device, seconds):
    """Microseconds of each call of `run`, at least 20 for at least `seconds`. The sets of inputs take turns, so that
    each has not been touched since all others were; CUDA is timed with events, the CPU with the wall clock."""
    for tensors in sets[:5]:
        run(tensors)
    clock = cuda_time if device == "cuda" else wall_time
    all_times, end = [], time.perf_counter() + seconds
    while len(all_times) < 20 or time.perf_counter() < end:
        all_times.append(clock(run, sets[len(all_times) % len(sets)]))
    return all_times


def wall_time(run, tensors):
    start = time.perf_counter()
    run(tensors)
    return 1e6 * (time.perf_counter() - start)


def cuda_time(run, tensors):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run(tensors)
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def measured(all_times, device):
    """The columns of `gatefold bench -o json` that times give."""
    ranks = statistics.quantiles(all_times, n=20, method="inclusive")
    return {
        "median_us": statistics.median(all_times),
        "p5_us": ranks[0],
        "p95_us": ranks[-1],
        "clock": "event" if device == "cuda" else "wall",
        "runs": len(all_times),
    }


def facts(device):
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {**versions, "adapter": {"name": name}}


def numbers(text):
    return [int(part) for part in text.split(",")]
