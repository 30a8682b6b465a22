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


def kind(tensor):
    """How an input is stored: masks as BOOL, lengths as I32, all else as F32."""
    return {torch.bool: "BOOL", torch.int32: "I32"}.get(tensor.dtype, "F32")


def save(name, inputs, outputs, options):
    """Writes inputs as F32, I32 or BOOL, outputs as F64, and the options as metadata to `<name>.safetensors`.

    By hand, because the safetensors package writes the metadata in a random order.
    The widest come first and the header is padded to 8 bytes, so that every tensor is aligned.
    """
    version = torch.__version__.split("+")[0]
    metadata = {key: str(value) for key, value in options.items()} | {"torch": version}
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    stored = [("F64", key, tensor) for key, tensor in sorted(outputs.items())]
    for wanted in ("F32", "I32", "BOOL"):
        stored += [(wanted, key, tensor) for key, tensor in sorted(inputs.items()) if kind(tensor) == wanted]
    types = {"F64": torch.float64, "F32": torch.float32, "I32": torch.int32, "BOOL": torch.bool}
    for dtype, key, tensor in stored:
        assert dtype != "F32" or torch.equal(tensor, rounded(tensor)), f"{name}: {key} is not rounded"
        values = tensor.detach().to(types[dtype]).contiguous().numpy().tobytes()
        header[key] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (math.ceil(len(text) / 8) * 8 - len(text))
    path = FOLDER / f"{name}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    print(f"{path.name}: {path.stat().st_size} bytes")
