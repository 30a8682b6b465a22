"""What both scripts share: a stable seed for each case, F32 inputs, and a writer of safetensors."""

import json
import math
import struct
import zlib
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent

# One thread: the order of a sum does not depend on the number of cores.
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def seed(name):
    """Seeds the generator from the name, so that adding a case changes no other case."""
    torch.manual_seed(zlib.crc32(name.encode()))


def rounded(tensor):
    """The tensor as it is stored: rounded to f32. PyTorch then computes from these values in f64."""
    return tensor.float().double()


def random(*shape, spread=1.0, outliers=0):
    """Normal numbers around a small positive mean (no symmetry to hide behind), some of them 4 times as large."""
    tensor = spread * (torch.randn(shape, dtype=torch.float64) + 0.25)
    where = torch.randperm(tensor.numel())[:outliers]
    tensor.view(-1)[where] *= 4.0
    return rounded(tensor)


def save(name, inputs, outputs, options):
    """Writes inputs as F32, outputs as F64 and the options as metadata to `<name>.safetensors`.

    By hand, because the safetensors package writes the metadata in a random order.
    F64 comes first and the header is padded to 8 bytes, so that every tensor is aligned.
    """
    version = torch.__version__.split("+")[0]
    metadata = {key: str(value) for key, value in options.items()} | {"torch": version}
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for tensors, kind, dtype in ((outputs, "F64", torch.float64), (inputs, "F32", torch.float32)):
        for key, tensor in sorted(tensors.items()):
            assert kind == "F64" or torch.equal(tensor, rounded(tensor)), f"{name}: {key} is not rounded"
            values = tensor.detach().to(dtype).contiguous().numpy().tobytes()
            header[key] = {
                "dtype": kind,
                "shape": list(tensor.shape),
                "data_offsets": [len(data), len(data) + len(values)],
            }
            data += values
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (math.ceil(len(text) / 8) * 8 - len(text))
    path = FOLDER / f"{name}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    print(f"{path.name}: {path.stat().st_size} bytes")
