//! `run rnn|lstm|gru --grad`: known answers, the same in every format, and mistakes.

use safetensors::tensor::Dtype;

use super::recurrent::{KERAS, ONNX, are_known, f32s, gates, known, onnx, permuted, run};
use super::{Folder, Tensor, Tensors, floats, has_adapter, text};

/// The tensors of a known answer of gradients.
fn gradients(op: &str, case: &str) -> (Tensors, Tensors) {
    known(&format!("gradients_{op}_{case}"))
}

const GRADIENTS: [(&str, &str, &[&str]); 10] = [
    ("rnn", "plain", &[]),
    ("rnn", "relu", &["--nonlinearity", "relu"]),
    ("rnn", "two_layers_bidirectional", &[]),
    ("lstm", "lengths", &[]),
    ("lstm", "c_n", &["--tier", "stepped"]),
    ("lstm", "projection", &[]),
    ("gru", "lengths", &[]),
    ("gru", "no_bias", &[]),
    ("lstm", "lengths", &["--checkpoint-every", "2"]),
    (
        "rnn",
        "two_layers_bidirectional",
        &["--checkpoint-every", "3"],
    ),
];

#[test]
fn gradients_are_the_known_answers() {
    let mut devices = vec![(&["--reference"][..], 1e-7)];
    if has_adapter() {
        devices.push((&[], 1e-5));
    }
    for (device, tolerance) in devices {
        for (op, case, options) in GRADIENTS {
            let (inputs, expected) = gradients(op, case);
            let options = [options, device, &["--grad"]].concat();
            let mut got = run(op, &inputs, &options);
            let norms = got.remove("grad_norms").expect("grad_norms");
            assert_eq!(norms.shape[1], inputs["input"].shape[0], "{op} {case}");
            assert!(floats(&norms).iter().any(|&norm| norm > 0.0), "{op} {case}");
            are_known(&got, &expected, tolerance, &format!("{op} {case}"));
        }
    }
}

#[test]
fn gradients_of_other_formats_are_the_same() {
    for op in ["rnn", "lstm", "gru"] {
        let (inputs, _) = gradients(op, "plain");
        let want = run(op, &inputs, &["--grad", "--reference"]);
        let hidden = inputs["weight_hh_l0"].shape[1];
        let (_, order) = ONNX.into_iter().find(|(name, _)| *name == op).unwrap();
        let mut tensors = onnx(op, &inputs, &[""]);
        let [steps, batch, _] = inputs["input"].shape[..] else {
            panic!("input");
        };
        let output = Tensor {
            shape: vec![steps, 1, batch, hidden],
            ..inputs["grad_output"].clone()
        };
        tensors.insert("grad_Y".into(), output);
        tensors.insert("grad_Y_h".into(), inputs["grad_h_n"].clone());
        if op == "lstm" {
            tensors.insert("grad_c_n".into(), inputs["grad_c_n"].clone());
        }
        let mut flags = vec!["--format", "onnx", "--grad", "--reference"];
        if op == "gru" {
            flags.extend(["--linear-before-reset", "1"]);
        }
        let got = run(op, &tensors, &flags);
        let both = [
            gates(&want["grad_bias_ih_l0"], order),
            gates(&want["grad_bias_hh_l0"], order),
        ];
        for (name, values, of) in [
            ("grad_W", gates(&want["grad_weight_ih_l0"], order), "W"),
            ("grad_R", gates(&want["grad_weight_hh_l0"], order), "R"),
            ("grad_B", both.concat(), "B"),
            ("grad_X", floats(&want["grad_input"]), "X"),
            ("grad_initial_h", floats(&want["grad_h_0"]), "initial_h"),
        ] {
            assert_eq!(floats(&got[name]), values, "{op} {name}");
            assert_eq!(got[name].shape, tensors[of].shape, "{op} {name}");
        }
        assert_eq!(got["grad_norms"].bytes, want["grad_norms"].bytes, "{op}");

        let (_, order) = KERAS.into_iter().find(|(name, _)| *name == op).unwrap();
        let kernel = |tensor: &Tensor| {
            let [rows, width] = tensor.shape[..] else {
                panic!("{:?}", tensor.shape);
            };
            let ordered = f32s(&[1, rows, width], &gates(tensor, order));
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
            ("kernel".to_owned(), kernel(&inputs["weight_ih_l0"])),
            (
                "recurrent_kernel".to_owned(),
                kernel(&inputs["weight_hh_l0"]),
            ),
            ("bias".to_owned(), f32s(&shape, &bias)),
            (
                "grad_output".to_owned(),
                permuted(&inputs["grad_output"], [1, 0, 2]),
            ),
        ]);
        for name in ["h_0", "c_0", "grad_h_n", "grad_c_n"] {
            if let Some(tensor) = inputs.get(name) {
                tensors.insert(name.to_owned(), tensor.clone());
            }
        }
        let got = run(
            op,
            &tensors,
            &["--format", "keras", "--grad", "--reference"],
        );
        if has_adapter() {
            let on_device = run(op, &tensors, &["--format", "keras", "--grad"]);
            are_known(&on_device, &got, 1e-5, op);
        }
        assert_eq!(got["grad_bias"].shape, shape, "{op}");
        assert_eq!(got["grad_input"].shape, tensors["input"].shape, "{op}");
        if op == "gru" {
            // without a second bias the numbers of the others differ: keras adds none
            let want = permuted(&want["grad_input"], [1, 0, 2]);
            assert_eq!(got["grad_input"].bytes, want.bytes, "{op}");
            let kernel =
                kernel(&run("gru", &inputs, &["--grad", "--reference"])["grad_weight_hh_l0"]);
            assert_eq!(got["grad_recurrent_kernel"].bytes, kernel.bytes, "{op}");
        }
    }
}

/// `--reference`, and nothing where there is a device.
fn devices() -> Vec<&'static [&'static str]> {
    let mut devices: Vec<&[&str]> = vec![&["--reference"]];
    if has_adapter() {
        devices.push(&[]);
    }
    devices
}

#[test]
fn batch_first_swaps_the_axes_of_gradients() {
    for device in devices() {
        for (op, case) in [("lstm", "lengths"), ("rnn", "two_layers_bidirectional")] {
            let (mut inputs, _) = gradients(op, case);
            let want = run(op, &inputs, &[device, &["--grad"]].concat());
            for name in ["input", "grad_output"] {
                if let Some(tensor) = inputs.get_mut(name) {
                    *tensor = permuted(tensor, [1, 0, 2]);
                }
            }
            let mut got = run(
                op,
                &inputs,
                &[device, &["--grad", "--batch-first"]].concat(),
            );
            for name in ["output", "grad_input"] {
                let swapped = want[name].shape.clone();
                assert_eq!(got[name].shape, [swapped[1], swapped[0], swapped[2]]);
                let values = permuted(&got[name], [1, 0, 2]);
                let same = permuted(&want[name], [0, 1, 2]);
                assert_eq!(values.bytes, same.bytes, "{op} {case} {name}");
                got.remove(name);
            }
            for (name, tensor) in got {
                assert_eq!(tensor.bytes, want[&name].bytes, "{op} {case} {name}");
            }
        }
    }
}

#[test]
fn onnx_gradients_in_layout_1() {
    for device in devices() {
        let (inputs, _) = gradients("lstm", "plain");
        let [steps, batch, _] = inputs["input"].shape[..] else {
            panic!("input");
        };
        let hidden = inputs["weight_hh_l0"].shape[1];
        let mut tensors = onnx("lstm", &inputs, &[""]);
        tensors.insert("grad_Y_h".into(), inputs["grad_h_n"].clone());
        let flags = [device, &["--format", "onnx", "--grad"]].concat();
        let with = |tensors: &Tensors, shape: Vec<usize>, output: &Tensor| {
            let output = Tensor {
                shape,
                ..output.clone()
            };
            Tensors::from_iter(
                tensors
                    .clone()
                    .into_iter()
                    .chain([("grad_Y".into(), output)]),
            )
        };
        let output = &inputs["grad_output"];
        let straight = with(&tensors, vec![steps, 1, batch, hidden], output);
        let want = run("lstm", &straight, &flags);
        for name in ["X", "initial_h", "initial_c", "grad_Y_h"] {
            let swapped = permuted(&tensors[name], [1, 0, 2]);
            tensors.insert(name.into(), swapped);
        }
        let output = permuted(output, [1, 0, 2]);
        let crossed = with(&tensors, vec![batch, steps, 1, hidden], &output);
        let got = run("lstm", &crossed, &[&flags[..], &["--batch-first"]].concat());
        for name in ["grad_X", "grad_initial_h", "grad_initial_c"] {
            let values = permuted(&got[name], [1, 0, 2]);
            let same = permuted(&want[name], [0, 1, 2]);
            assert_eq!(values.bytes, same.bytes, "{name}");
        }
        for name in ["grad_W", "grad_R", "grad_B"] {
            assert_eq!(got[name].bytes, want[name].bytes, "{name}");
        }
    }
}

#[test]
fn gradients_of_halves_are_f32() {
    if !has_adapter() {
        return;
    }
    for (op, input, weights, flags) in [
        ("lstm", Dtype::F16, Dtype::F16, &["--grad"][..]),
        ("gru", Dtype::BF16, Dtype::F32, &["--grad"]),
        (
            "rnn",
            Dtype::F32,
            Dtype::BF16,
            &["--grad", "--checkpoint-every", "2"],
        ),
    ] {
        let (mut inputs, _) = gradients(op, "plain");
        for (name, tensor) in &mut inputs {
            match name.as_str() {
                "input" => *tensor = stored(tensor, input),
                name if name.starts_with("weight") || name.starts_with("bias") => {
                    *tensor = stored(tensor, weights);
                }
                _ => {}
            }
        }
        let got = run(op, &inputs, flags);
        let want = run(op, &inputs, &[flags, &["--reference"]].concat());
        let is_f32 = |tensor: &Tensor| tensor.dtype == Dtype::F32;
        assert!(got.values().all(is_f32), "{op}");
        are_known(&got, &want, 1e-5, op);
    }
}

/// The values of a tensor, rounded to another type.
fn stored(tensor: &Tensor, dtype: Dtype) -> Tensor {
    let bytes = floats(tensor).into_iter().flat_map(|value| match dtype {
        Dtype::F16 => half::f16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f64(value).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    });
    Tensor {
        dtype,
        shape: tensor.shape.clone(),
        bytes: bytes.collect(),
    }
}

#[test]
fn gradients_that_do_not_fit_are_refused() {
    let (inputs, _) = gradients("lstm", "plain");
    let without = |names: &[&str]| {
        let mut tensors = inputs.clone();
        names.iter().for_each(|&name| drop(tensors.remove(name)));
        tensors
    };
    let mut wrong = inputs.clone();
    wrong.insert("grad_h_n".into(), f32s(&[1, 3, 4], &[0.0; 12]));
    let mut gru = gradients("gru", "plain").0;
    gru.insert("grad_c_n".into(), gru["grad_h_n"].clone());
    for (op, tensors, options, says) in [
        ("lstm", inputs.clone(), "", ": is read with --grad"),
        (
            "lstm",
            without(&["grad_output", "grad_h_n", "grad_c_n"]),
            "--grad",
            "--grad: one of grad_output, grad_h_n, grad_c_n must be there",
        ),
        (
            "lstm",
            wrong,
            "--grad",
            "grad_h_n: shape [1, 3, 4], expected that of h_n, [1, 3, 5]",
        ),
        ("gru", gru, "--grad", "grad_c_n: unknown tensor"),
    ] {
        let options: Vec<_> = options.split_whitespace().chain(["--reference"]).collect();
        let (done, results) = Folder::new().run(op, &tensors, &options);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{options:?}: {error}");
        assert!(error.lines().count() == 1 && results.is_none(), "{error}");
        assert!(error.contains(says), "{says}: {error}");
    }
}
