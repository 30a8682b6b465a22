"""ONNX's own node tests of its operator Attention (opsets 23 to 25), run by `gatefold run attention`:

    cargo build --release -p gatefold-cli
    python tests/peers/onnx_attention.py target/release/gatefold [--filter NAME] [-- --reference]

Needs `pip install onnx numpy safetensors` (onnx 1.23: 93 cases). What follows `--` goes to the program. Exit code 1 if
a case fails. GATEFOLD_RUNNER goes in front of the program, as in its tests. How ONNX's words become the program's:

    Q, K, V of rank 3          split into heads, and the output joined again
    past_key, past_value       put in front of K and V; is_causal then has the offset past_len
    nonpad_kv_seqlen           kv_lengths; is_causal then is bottom-right
    is_causal                  otherwise top-left
    attn_mask, boolean         mask; missing columns are False
    attn_mask, float           bias; missing columns are -inf
    left_, right_window_size   window-left, window-right
    qk_matmul_output           mode 3: weights; mode 2: ln(weights) + log_sum_exp; modes 0 and 1: the same of a run
                               without mask, or also without softcap

present_key and present_value are K and V with the past in front: nothing that is computed.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy

# (absolute, relative) by the type of Q: outputs of half precision are rounded to it by ONNX
TOLERANCE = {"float32": (1e-5, 1e-4), "float16": (1e-3, 1e-2), "bfloat16": (1e-2, 2e-2)}


def cases(needle):
    """The node tests themselves: those of the operator's expansion into others are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        every = collect_testcases("Attention")
    return [case for case in every if not case.name.endswith("_expanded") and needle in case.name]


def split_heads(tensor, heads):
    """From [batch, seq_len, heads * dim] to [batch, heads, seq_len, dim]."""
    batch, seq_len, _ = tensor.shape
    return tensor.reshape(batch, seq_len, heads, -1).transpose(0, 2, 1, 3)


def join_heads(tensor):
    batch, _, seq_len, _ = tensor.shape
    return tensor.transpose(0, 2, 1, 3).reshape(batch, seq_len, -1)


def padded(mask, kv_len):
    missing = kv_len - mask.shape[-1]
    fill = False if mask.dtype == np.bool_ else -np.inf
    return np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=fill)


def stored(tensors):
    """A file of safetensors, bfloat16 too, which the package does not write from NumPy."""
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL", "int64": "I64"}
    header, data = {}, b""
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor).tobytes()
        ends = [len(data), len(data) + len(values)]
        header[name] = {"dtype": kinds[str(tensor.dtype)], "shape": tensor.shape, "data_offsets": ends}
        data += values
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class Call:
    """One call of the program: its tensors and options."""

    def __init__(self, given, attributes):
        query, key, value = given["Q"], given["K"], given["V"]
        if query.ndim == 3:
            query = split_heads(query, attributes["q_num_heads"])
            key, value = (split_heads(tensor, attributes["kv_num_heads"]) for tensor in (key, value))
        past = given.get("past_key")
        if past is not None:
            key = np.concatenate([past, key], axis=2)
            value = np.concatenate([given["past_value"], value], axis=2)
        self.tensors = {"query": query, "key": key, "value": value}
        self.options = {}
        if attributes.get("scale"):
            self.options["scale"] = attributes["scale"]
        self.plain = Call.copy(self)

        if attributes.get("softcap"):
            self.options["softcap"] = attributes["softcap"]
        self.capped = Call.copy(self)

        mask, lengths = given.get("attn_mask"), given.get("nonpad_kv_seqlen")
        if mask is not None:
            name = "mask" if mask.dtype == np.bool_ else "bias"
            self.tensors[name] = padded(mask, key.shape[2])
        if lengths is not None:
            self.tensors["kv_lengths"] = lengths
        if attributes.get("is_causal"):
            offset = "top-left" if past is None else past.shape[2]
            self.options["causal"] = offset if lengths is None else "bottom-right"
        windows = {f"window-{side}": attributes.get(f"{side}_window_size", -1) for side in ("left", "right")}
        windows = {name: size for name, size in windows.items() if size >= 0}
        assert "causal" in self.options or not windows or (past is None and lengths is None), (
            "a window around a cache's diagonal without is_causal: the program's diagonal is then that of offset 0"
        )
        self.options |= windows

    def copy(self):
        other = object.__new__(Call)
        other.tensors, other.options = dict(self.tensors), dict(self.options)
        return other

    def run(self, program, extra):
        """output, log_sum_exp and weights; an error of the program as an exception."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = (Path(folder) / f"{name}.safetensors" for name in ("in", "out"))
            source.write_bytes(stored(self.tensors))
            options = [f"--{name}={value}" for name, value in self.options.items()]
            runner = os.environ.get("GATEFOLD_RUNNER", "").split()
            command = [*runner, program, "run", "attention", "--input", source, "--output", target, "--weights"]
            done = subprocess.run([*command, *options, *extra], capture_output=True, text=True, timeout=300)
            if done.returncode != 0:
                raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()}")
            return safetensors.numpy.load_file(target)

    def scores(self, program, extra):
        """What the softmax was taken of; -inf where masked."""
        got = self.run(program, extra)
        with np.errstate(divide="ignore"):
            return np.log(got["weights"]) + got["log_sum_exp"][..., None]


def worst(got, want, tolerance):
    """The largest error, in units of what is allowed."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    if got.shape != want.shape:
        return np.inf
    absolute, relative = tolerance
    same = got == want
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want) / (absolute + relative * np.abs(want))
    error = np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))
    return float(error.max(initial=0.0))


def check(case, program, extra):
    """The errors of each output, in units of what is allowed."""
    (node,) = case.model.graph.node
    inputs, outputs = case.data_sets[0]
    given = dict(zip([name for name in node.input if name], [tensor for tensor in inputs if tensor is not None]))
    wanted = dict(zip([name for name in node.output if name], outputs))
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    tolerance = TOLERANCE[str(given["Q"].dtype)]

    call = Call(given, attributes)
    got = call.run(program, extra)
    output = got["output"] if given["Q"].ndim == 4 else join_heads(got["output"])
    errors = {"Y": worst(output, wanted["Y"], tolerance)}
    if "qk_matmul_output" in wanted:
        mode = attributes.get("qk_matmul_output_mode", 0)
        if mode == 3:
            scores = got["weights"]
        else:
            scores = [call.plain, call.capped, call][mode].scores(program, extra)
        errors[f"qk_matmul_output, mode {mode}"] = worst(scores, wanted["qk_matmul_output"], tolerance)
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("extra", nargs="*", help="for the program")
    arguments = parser.parse_args()
    passed = failed = 0
    for case in cases(arguments.filter):
        try:
            errors = check(case, arguments.program, arguments.extra)
            verdict = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
            good = all(error <= 1 for error in errors.values())
        except (RuntimeError, AssertionError, subprocess.TimeoutExpired) as error:
            verdict, good = str(error), False
        passed, failed = passed + good, failed + (not good)
        print(f"{'pass' if good else 'FAIL'} {case.name.removeprefix('test_')}: {verdict}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


main()
