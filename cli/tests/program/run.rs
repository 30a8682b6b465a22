//! `run` against the known answers of `tests/golden`.

use safetensors::tensor::Dtype;

use super::{Folder, Tensor, Tensors, floats, has_adapter, split, text};

const GOLDEN: [(&str, &[&str]); 15] = [
    ("attention_gqa_causal_ragged", &["--causal", "top-left"]),
    ("attention_gqa", &[]),
    (
        "attention_causal_bottom_right_more_queries",
        &["--causal", "bottom-right"],
    ),
    ("attention_causal_offset_negative", &["--causal", "-3"]),
    ("attention_causal_offset_negative", &["--causal=-3"]),
    ("attention_custom_scale", &["--scale", "0.1875"]),
    ("rnn_relu", &["--nonlinearity", "relu"]),
    ("rnn_two_layers_bidirectional", &["--tier", "stepped"]),
    ("lstm_two_layers_bidirectional", &["--tier", "resident"]),
    ("lstm_no_bias", &[]),
    ("gru_two_layers_bidirectional", &[]),
    ("gru_two_layers_bidirectional", &["--tier", "persistent"]),
    ("lstm_projection", &["--tier", "stepped"]),
    ("lstm_projection_two_layers_bidirectional", &[]),
    (
        "lstm_projection_two_layers_bidirectional",
        &["--tier", "persistent"],
    ),
];

/// Outputs of `run` against those of the golden file, in units of the largest of each tensor.
pub fn agrees(case: &str, options: &[&str], tolerance: f64) {
    let (inputs, expected) = split(case);
    let op = case.split('_').next().unwrap();
    let (done, results) = Folder::new().run(op, &inputs, options);
    assert_eq!(
        done.status.code(),
        Some(0),
        "{case}: {}",
        text(&done.stderr)
    );
    let results = results.unwrap();
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&results), names(&expected), "{case}");
    for (name, got) in &results {
        let shape = &expected[name].shape;
        assert_eq!(
            (got.dtype, &got.shape),
            (Dtype::F32, shape),
            "{case}: {name}"
        );
        let (got, want) = (floats(got), floats(&expected[name]));
        let finite = want.iter().filter(|value| value.is_finite());
        let scale = finite.fold(1.0, |scale: f64, value| scale.max(value.abs()));
        for (got, want) in got.iter().zip(&want) {
            let same = got == want || (got - want).abs() <= tolerance * scale;
            assert!(same, "{case}: {name}: got {got}, expected {want}");
        }
    }
}

#[test]
fn run_gives_the_known_answers() {
    if !has_adapter() {
        return;
    }
    for (case, options) in GOLDEN {
        agrees(case, options, 1e-5);
    }
    agrees("attention_gqa", &["--variant", "portable"], 1e-5);
}

#[test]
fn the_reference_gives_the_known_answers_without_an_adapter() {
    for (case, options) in GOLDEN {
        let options = [options, &["--reference", "--adapter", "no such adapter"]].concat();
        agrees(case, &options, 1e-7);
    }
}

#[test]
fn half_precision_tensors_are_widened() {
    let mut tensors = Tensors::new();
    for (name, shape) in [
        ("query", [1, 1, 1, 2]),
        ("key", [1, 1, 1, 2]),
        ("value", [1, 1, 1, 2]),
    ] {
        // 1.0 and -2.0
        let bytes = match name {
            "value" => vec![0x80, 0x3f, 0x00, 0xc0],
            _ => vec![0x00, 0x3c, 0x00, 0xc0],
        };
        let dtype = if name == "value" {
            Dtype::BF16
        } else {
            Dtype::F16
        };
        let shape = shape.to_vec();
        tensors.insert(
            name.into(),
            Tensor {
                dtype,
                shape,
                bytes,
            },
        );
    }
    let (done, results) = Folder::new().run("attention", &tensors, &["--reference"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let results = results.unwrap();
    assert_eq!(floats(&results["output"]), [1.0, -2.0]);
    let score = f64::from(5.0 / 2.0_f32.sqrt());
    assert!((floats(&results["log_sum_exp"])[0] - score).abs() < 1e-6);
}

#[test]
fn batch_first_swaps_input_and_output_alone() {
    let (mut inputs, _) = split("lstm_plain");
    let (_, straight) = Folder::new().run("lstm", &inputs, &["--reference"]);
    let swapped = swap(&inputs["input"]);
    inputs.insert("input".into(), swapped);
    let (_, crossed) = Folder::new().run("lstm", &inputs, &["--reference", "--batch-first"]);
    let (straight, crossed) = (straight.unwrap(), crossed.unwrap());
    assert_eq!(swap(&crossed["output"]).bytes, straight["output"].bytes);
    for name in ["h_n", "c_n"] {
        assert_eq!(crossed[name].bytes, straight[name].bytes);
    }
}

/// The first two of three axes exchanged.
fn swap(tensor: &Tensor) -> Tensor {
    let [a, b, width] = tensor.shape[..] else {
        panic!("{:?}", tensor.shape)
    };
    let row = |i: usize, j: usize| &tensor.bytes[4 * (i * b + j) * width..][..4 * width];
    let bytes = (0..b).flat_map(|j| (0..a).flat_map(move |i| row(i, j).iter().copied()));
    Tensor {
        dtype: tensor.dtype,
        shape: vec![b, a, width],
        bytes: bytes.collect(),
    }
}
