//! `run rnn|lstm|gru` on tensors of other frameworks: the same numbers give the same result, bit for bit.

use safetensors::tensor::Dtype;

use super::{Folder, Tensor, Tensors, floats, has_adapter, split, text};

/// PyTorch's gate of each of ONNX's and Keras's: i f g o to i o f c and i f c o, r z n to z r h.
pub const ONNX: [(&str, &[usize]); 3] =
    [("rnn", &[0]), ("lstm", &[0, 3, 1, 2]), ("gru", &[1, 0, 2])];
pub const KERAS: [(&str, &[usize]); 3] =
    [("rnn", &[0]), ("lstm", &[0, 1, 2, 3]), ("gru", &[1, 0, 2])];

pub fn f32s(shape: &[usize], values: &[f64]) -> Tensor {
    let bytes = values
        .iter()
        .flat_map(|&value| (value as f32).to_le_bytes());
    Tensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: bytes.collect(),
    }
}

fn i32s(values: &[i32]) -> Tensor {
    Tensor {
        dtype: Dtype::I32,
        shape: vec![values.len()],
        bytes: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    }
}

/// The values of a parameter with its gates in another order.
pub fn gates(tensor: &Tensor, order: &[usize]) -> Vec<f64> {
    let values = floats(tensor);
    let block = values.len() / order.len();
    let blocks = order
        .iter()
        .flat_map(|&gate| &values[gate * block..][..block]);
    blocks.copied().collect()
}

/// Axis `i` of the result is axis `order[i]` of a tensor of three axes.
pub fn permuted(tensor: &Tensor, order: [usize; 3]) -> Tensor {
    let values = floats(tensor);
    let shape = order.map(|axis| tensor.shape[axis]);
    let stride = |axis: usize| tensor.shape[axis + 1..].iter().product::<usize>();
    let [a, b, c] = order.map(stride);
    let mut out = Vec::new();
    for i in 0..shape[0] {
        for j in 0..shape[1] {
            for k in 0..shape[2] {
                out.push(values[i * a + j * b + k * c]);
            }
        }
    }
    f32s(&shape, &out)
}

/// The inputs and the results of a golden file, with lengths as whole numbers.
pub fn known(case: &str) -> (Tensors, Tensors) {
    let (mut inputs, expected) = split(case);
    if let Some(lengths) = inputs.get("lengths") {
        let lengths = floats(lengths).into_iter();
        let whole: Vec<i32> = lengths.map(|length| length as i32).collect();
        inputs.insert("lengths".into(), i32s(&whole));
    }
    (inputs, expected)
}

/// All results are there, and each element is right relative to the largest of its tensor.
pub fn are_known(got: &Tensors, expected: &Tensors, tolerance: f64, case: &str) {
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(expected), "{case}");
    for (name, tensor) in expected {
        assert_eq!(got[name].shape, tensor.shape, "{case} {name}");
        let (want, got) = (floats(tensor), floats(&got[name]));
        let scale = want.iter().fold(0.0, |scale: f64, x| scale.max(x.abs()));
        for (got, want) in got.iter().zip(&want) {
            assert!(
                (got - want).abs() <= tolerance * scale.max(1e-3),
                "{case} {name}: got {got}, expected {want}"
            );
        }
    }
}

pub fn run(op: &str, tensors: &Tensors, options: &[&str]) -> Tensors {
    let (done, results) = Folder::new().run(op, tensors, options);
    let error = text(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{op} {options:?}: {error}");
    results.unwrap()
}

/// The parameters of PyTorch's names as `W R B`, with `suffixes` as directions.
pub fn onnx(op: &str, tensors: &Tensors, suffixes: &[&str]) -> Tensors {
    let (_, order) = ONNX.into_iter().find(|(name, _)| *name == op).unwrap();
    let joined = |stems: &[&str]| -> Vec<f64> {
        let names = suffixes
            .iter()
            .flat_map(|suffix| stems.iter().map(move |stem| format!("{stem}_l0{suffix}")));
        names
            .flat_map(|name| gates(&tensors[&name], order))
            .collect()
    };
    let [rows, width] = tensors["weight_ih_l0"].shape[..] else {
        panic!("{op}");
    };
    let (count, hidden) = (suffixes.len(), tensors["weight_hh_l0"].shape[1]);
    let mut named = Tensors::from([
        ("X".to_owned(), tensors["input"].clone()),
        (
            "W".to_owned(),
            f32s(&[count, rows, width], &joined(&["weight_ih"])),
        ),
        (
            "R".to_owned(),
            f32s(&[count, rows, hidden], &joined(&["weight_hh"])),
        ),
    ]);
    if tensors.contains_key("bias_ih_l0") {
        let biases = f32s(&[count, 2 * rows], &joined(&["bias_ih", "bias_hh"]));
        named.insert("B".to_owned(), biases);
    }
    for (from, to) in [("h_0", "initial_h"), ("c_0", "initial_c")] {
        if let Some(state) = tensors.get(from) {
            named.insert(to.to_owned(), state.clone());
        }
    }
    named
}

/// `Y` `[seq_len, directions, batch, hidden_size]` as `output`.
fn joined(y: &Tensor) -> Vec<u8> {
    let [steps, count, batch, hidden] = y.shape[..] else {
        panic!("{:?}", y.shape);
    };
    let mut bytes = Vec::new();
    for t in 0..steps {
        for b in 0..batch {
            for d in 0..count {
                let row = ((t * count + d) * batch + b) * hidden;
                bytes.extend(&y.bytes[4 * row..][..4 * hidden]);
            }
        }
    }
    bytes
}

fn onnx_is_the_same(device: &[&str]) {
    for op in ["rnn", "lstm", "gru"] {
        for (case, suffixes, direction) in [
            ("plain", &[""][..], "forward"),
            ("no_bias", &[""], "forward"),
            ("bidirectional", &["", "_reverse"], "bidirectional"),
        ] {
            let (inputs, _) = split(&format!("{op}_{case}"));
            let want = run(op, &inputs, device);
            let mut flags = vec!["--format", "onnx", "--direction", direction];
            if op == "gru" {
                flags.extend(["--linear-before-reset", "1"]);
            }
            flags.extend(device);
            let mut tensors = onnx(op, &inputs, suffixes);
            let got = run(op, &tensors, &flags);
            assert_eq!(joined(&got["Y"]), want["output"].bytes, "{op} {case}");
            assert_eq!(got["Y_h"].bytes, want["h_n"].bytes, "{op} {case}");
            if op == "lstm" {
                assert_eq!(got["Y_c"].bytes, want["c_n"].bytes, "{op} {case}");
            }
            // layout 1
            for name in ["X", "initial_h", "initial_c"] {
                if let Some(tensor) = tensors.get(name) {
                    let swapped = permuted(tensor, [1, 0, 2]);
                    tensors.insert(name.to_owned(), swapped);
                }
            }
            flags.push("--batch-first");
            let swapped = run(op, &tensors, &flags);
            let y_h = permuted(&swapped["Y_h"], [1, 0, 2]);
            assert_eq!(y_h.bytes, got["Y_h"].bytes, "{op} {case}");
            let [steps, count, batch, hidden] = got["Y"].shape[..] else {
                panic!("{op} {case}");
            };
            assert_eq!(swapped["Y"].shape, [batch, steps, count, hidden]);
        }
    }
}

#[test]
fn onnx_tensors_give_what_pytorchs_give() {
    onnx_is_the_same(&["--reference"]);
    if has_adapter() {
        onnx_is_the_same(&[]);
    }
}

#[test]
fn onnx_reverse_runs_from_each_sequences_own_end() {
    let (mut inputs, _) = split("lstm_bidirectional");
    inputs.insert("lengths".into(), i32s(&[7, 0, 3]));
    let want = run("lstm", &inputs, &["--reference"]);
    let mut tensors = onnx("lstm", &inputs, &["_reverse"]);
    tensors.insert("sequence_lens".into(), i32s(&[7, 0, 3]));
    for name in ["initial_h", "initial_c"] {
        let state = &tensors[name];
        let [_, batch, hidden] = state.shape[..] else {
            panic!("{name}");
        };
        let second = floats(state).split_off(batch * hidden);
        tensors.insert(name.into(), f32s(&[1, batch, hidden], &second));
    }
    let flags = ["--format", "onnx", "--direction", "reverse", "--reference"];
    let got = run("lstm", &tensors, &flags);
    let half = want["h_n"].bytes.len() / 2;
    assert_eq!(got["Y_h"].bytes, want["h_n"].bytes[half..]);
    assert_eq!(got["Y_c"].bytes, want["c_n"].bytes[half..]);
}

#[test]
fn onnx_defaults_are_the_standards() {
    let run = |op, options: &str| {
        let (inputs, _) = split(&format!("{op}_plain"));
        let options: Vec<_> = options.split_whitespace().collect();
        let flags = [&["--format", "onnx", "--reference"], &options[..]].concat();
        run(op, &onnx(op, &inputs, &[""]), &flags)["Y"]
            .bytes
            .clone()
    };
    let plain = run("gru", "");
    assert_eq!(run("gru", "--linear-before-reset 0"), plain);
    assert_ne!(run("gru", "--linear-before-reset 1"), plain);
    assert_eq!(run("gru", "--activations Sigmoid,Tanh"), plain);
    assert_ne!(run("gru", "--activations HardSigmoid,Tanh"), plain);
    let plain = run("lstm", "");
    assert_eq!(run("lstm", "--activations sigmoid,tanh,tanh"), plain);
    assert_ne!(run("lstm", "--activations Sigmoid,Tanh,Relu"), plain);
    assert_ne!(run("lstm", "--input-forget"), plain);
    assert_eq!(
        run("rnn", "--activations Relu"),
        run("rnn", "--nonlinearity relu")
    );
}

#[test]
fn keras_tensors_give_what_pytorchs_give() {
    for op in ["rnn", "lstm", "gru"] {
        let (mut inputs, _) = split(&format!("{op}_plain"));
        let (_, order) = KERAS.into_iter().find(|(name, _)| *name == op).unwrap();
        if op != "gru" {
            // Keras adds one bias
            let zeros = vec![0.0; inputs["bias_hh_l0"].shape[0]];
            inputs.insert("bias_hh_l0".into(), f32s(&[zeros.len()], &zeros));
        }
        let want = run(op, &inputs, &["--reference"]);
        let kernel = |name: &str| {
            let [rows, width] = inputs[name].shape[..] else {
                panic!("{name}");
            };
            let ordered = f32s(&[1, rows, width], &gates(&inputs[name], order));
            let mut transposed = permuted(&ordered, [0, 2, 1]);
            transposed.shape.remove(0);
            transposed
        };
        let mut bias = gates(&inputs["bias_ih_l0"], order);
        let mut shape = vec![bias.len()];
        if op == "gru" {
            shape.insert(0, 2);
            bias.extend(gates(&inputs["bias_hh_l0"], order));
        }
        let mut tensors = Tensors::from([
            ("input".to_owned(), permuted(&inputs["input"], [1, 0, 2])),
            ("kernel".to_owned(), kernel("weight_ih_l0")),
            ("recurrent_kernel".to_owned(), kernel("weight_hh_l0")),
            ("bias".to_owned(), f32s(&shape, &bias)),
        ]);
        for name in ["h_0", "c_0"] {
            if let Some(state) = inputs.get(name) {
                tensors.insert(name.to_owned(), state.clone());
            }
        }
        let got = run(op, &tensors, &["--format", "keras", "--reference"]);
        let output = permuted(&got["output"], [1, 0, 2]);
        assert_eq!(output.bytes, want["output"].bytes, "{op}");
        for name in ["h_n", "c_n"] {
            let bytes = |tensors: &Tensors| tensors.get(name).map(|tensor| tensor.bytes.clone());
            assert_eq!(bytes(&got), bytes(&want), "{op} {name}");
        }
    }
}

#[test]
fn no_steps_and_no_rows_are_no_mistake() {
    let mut devices = vec![&["--reference"][..]];
    if has_adapter() {
        devices.push(&[]);
    }
    for device in devices {
        let (mut inputs, _) = split("lstm_plain");
        let [_, batch, width] = inputs["input"].shape[..] else {
            panic!("input");
        };
        inputs.insert("input".into(), f32s(&[0, batch, width], &[]));
        let results = run("lstm", &inputs, device);
        let hidden = inputs["weight_hh_l0"].shape[1];
        assert_eq!(results["output"].shape, [0, batch, hidden]);
        assert_eq!(results["h_n"].bytes, inputs["h_0"].bytes);
        assert_eq!(results["c_n"].bytes, inputs["c_0"].bytes);
        inputs.insert("input".into(), f32s(&[4, 0, width], &[]));
        for name in ["h_0", "c_0"] {
            inputs.insert(name.into(), f32s(&[1, 0, hidden], &[]));
        }
        let results = run("lstm", &inputs, device);
        assert_eq!(results["output"].shape, [4, 0, hidden]);
        assert_eq!(results["c_n"].shape, [1, 0, hidden]);
    }
}

#[test]
fn flags_that_do_not_fit_are_refused() {
    let (lstm, _) = split("lstm_plain");
    let onnx = onnx("lstm", &lstm, &[""]);
    for (tensors, options, says) in [
        (&lstm, "--nonlinearity relu", "only an rnn has one"),
        (&lstm, "--linear-before-reset 1", "only a gru has that gate"),
        (
            &lstm,
            "--direction reverse",
            "--direction is for --format onnx",
        ),
        (&lstm, "--clip 0", "expected a number above 0"),
        (
            &lstm,
            "--checkpoint-every 3",
            "--checkpoint-every: is for --grad",
        ),
        (&lstm, "--dropout 1", "expected a number from 0 to below 1"),
        (
            &lstm,
            "--format onnx",
            "bias_hh_l0: unknown tensor; lstm --format onnx reads X, W, R",
        ),
        (
            &onnx,
            "--format onnx --direction bidirectional",
            "R: shape [1, 24, 6], expected [2, ",
        ),
        (
            &onnx,
            "--format onnx --activations Sigmoid",
            "1 names, expected 3",
        ),
        (
            &onnx,
            "--format onnx --activations A,B,C",
            "--activations: no A; there are Sigmoid, ",
        ),
    ] {
        let options: Vec<_> = options.split_whitespace().chain(["--reference"]).collect();
        let (done, results) = Folder::new().run("lstm", tensors, &options);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{options:?}: {error}");
        assert!(error.lines().count() == 1 && results.is_none(), "{error}");
        assert!(error.contains(says), "{says}: {error}");
    }
}
