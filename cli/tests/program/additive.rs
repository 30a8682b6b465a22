//! `run additive-attention`: the known answers of `tests/golden`, and what is refused.

use safetensors::tensor::Dtype;

use super::{Folder, Tensor, Tensors, floats, has_adapter, split, tensor, text};

const CASES: [&str; 8] = [
    "plain",
    "value_dim_differs",
    "one_of_each",
    "mask_of_queries",
    "mask_and_kv_lengths",
    "kv_lengths",
    "large_opposite_terms",
    "saturated",
];

fn agrees(case: &str, options: &[&str], tolerance: f64) {
    let (inputs, expected) = split(&format!("additive_attention_{case}"));
    let options = [&["--grad", "--weights"], options].concat();
    let (done, results) = Folder::new().run("additive-attention", &inputs, &options);
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
    for case in CASES {
        agrees(case, &[], 1e-5);
    }
    agrees("mask_and_kv_lengths", &["--variant", "portable"], 1e-5);
}

#[test]
fn the_reference_gives_the_known_answers_without_an_adapter() {
    for case in CASES {
        agrees(case, &["--reference", "--adapter", "no such adapter"], 1e-7);
    }
}

fn inputs() -> Tensors {
    let tensors = [
        ("query", &[2, 3, 4][..]),
        ("key", &[2, 5, 4]),
        ("value", &[2, 5, 6]),
        ("v", &[4]),
        ("grad_output", &[2, 3, 6]),
    ];
    let tensors = tensors.into_iter();
    tensors
        .map(|(name, shape)| (name.to_owned(), tensor(shape)))
        .collect()
}

#[test]
fn outputs_are_those_asked_for() {
    let run = |options: &[&str]| {
        let options = [&["--reference"], options].concat();
        let (done, results) = Folder::new().run("additive-attention", &inputs(), &options);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        results.unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(run(&[]), ["log_sum_exp", "output"]);
    assert_eq!(run(&["--weights"]), ["log_sum_exp", "output", "weights"]);
    let gradients = [
        "grad_key",
        "grad_query",
        "grad_v",
        "grad_value",
        "log_sum_exp",
        "output",
    ];
    assert_eq!(run(&["--grad"]), gradients);
}

#[test]
fn half_tensors_give_nearly_the_same() {
    if !has_adapter() {
        return;
    }
    let mut halves = inputs();
    for name in ["query", "key", "value"] {
        let half = halves.get_mut(name).unwrap();
        let rounded = floats(half).into_iter().map(half::f16::from_f64);
        half.bytes = rounded.flat_map(|x| x.to_le_bytes()).collect();
        half.dtype = Dtype::F16;
    }
    let run = |tensors: &Tensors, options: &[&str]| {
        let (done, results) = Folder::new().run("additive-attention", tensors, options);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        results.unwrap()
    };
    let got = run(&halves, &["--grad"]);
    let want = run(&halves, &["--grad", "--reference"]);
    for (name, want) in &want {
        for (got, want) in floats(&got[name]).iter().zip(floats(want)) {
            assert!((got - want).abs() < 1e-5, "{name}: {got} {want}");
        }
    }
}

#[test]
fn mistakes_get_one_line() {
    let refused = |change: &dyn Fn(&mut Tensors), options: &[&str]| {
        let mut tensors = inputs();
        change(&mut tensors);
        let (done, results) = Folder::new().run("additive-attention", &tensors, options);
        assert_eq!(done.status.code(), Some(2));
        assert!(results.is_none());
        let message = text(&done.stderr);
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        message.trim_end().trim_start_matches("error: ").to_owned()
    };
    let put = |name: &'static str, dtype, shape: &'static [usize], bytes: &'static [u8]| {
        move |tensors: &mut Tensors| {
            let (shape, bytes) = (shape.to_vec(), bytes.to_vec());
            let tensor = Tensor {
                dtype,
                shape,
                bytes,
            };
            tensors.insert(name.into(), tensor);
        }
    };
    let message = refused(&|tensors| drop(tensors.remove("v")), &[]);
    assert_eq!(message, "v: is needed and missing");
    let message = refused(&|tensors| drop(tensors.remove("grad_output")), &["--grad"]);
    assert_eq!(message, "grad_output: is needed and missing");
    let message = refused(
        &|tensors| drop(tensors.insert("bias".into(), tensor(&[1]))),
        &[],
    );
    assert_eq!(
        message,
        "bias: unknown tensor; additive-attention reads query, key, value, v, mask, kv_lengths, \
         grad_output"
    );
    let message = refused(
        &|tensors| drop(tensors.insert("key".into(), tensor(&[2, 5, 3]))),
        &[],
    );
    assert_eq!(message, "key: shape [2, 5, 3], expected [2, kv_len, 4]");
    let message = refused(
        &|tensors| drop(tensors.insert("v".into(), tensor(&[1, 4]))),
        &[],
    );
    assert_eq!(message, "v: shape [1, 4], expected [4]");
    let message = refused(&put("mask", Dtype::BOOL, &[2], &[1, 0]), &[]);
    assert_eq!(
        message,
        "mask: shape [2], expected 1 to 3 axes that broadcast to [2, 3, 5], each of length 1 or that"
    );
    let message = refused(&put("mask", Dtype::F32, &[1], &[0; 4]), &[]);
    assert_eq!(message, "mask: expected type BOOL or U8");
    let message = refused(
        &put("kv_lengths", Dtype::I32, &[2], &[5, 0, 0, 0, 6, 0, 0, 0]),
        &[],
    );
    assert_eq!(message, "kv_lengths: 6, expected 0 to kv_len, 5");
    let message = refused(&put("kv_lengths", Dtype::F32, &[2], &[0; 8]), &[]);
    assert_eq!(message, "kv_lengths: type F32, expected I32 or I64");
}
