//! The program as its users meet it: files, flags, standard output, exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, SafeTensors, View};
use serde_json::Value;
use tempfile::TempDir;

/// Runs the program, through the runner of `GATEFOLD_RUNNER` where there is one.
fn gatefold(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_gatefold");
    let runner = std::env::var("GATEFOLD_RUNNER").unwrap_or_default();
    let mut words: Vec<&str> = runner.split_whitespace().collect();
    words.push(program);
    Command::new(words[0])
        .args(&words[1..])
        .args(args)
        .output()
        .unwrap()
}

/// Whether the test may go on: `false` where there is no adapter and `GATEFOLD_ALLOW_NO_GPU=1` allows it.
fn has_adapter() -> bool {
    let allowed = std::env::var("GATEFOLD_ALLOW_NO_GPU").is_ok_and(|value| value == "1");
    if allowed && gatefold(&["info"]).status.code() == Some(3) {
        eprintln!("skipped: no adapter");
        return false;
    }
    true
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

type Tensors = BTreeMap<String, Tensor>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: safetensors::tensor::TensorView<'_>| Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, tensor(view)))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype {
        Dtype::F32 => {
            let (values, _) = tensor.bytes.as_chunks();
            values
                .iter()
                .map(|value| f32::from_le_bytes(*value).into())
                .collect()
        }
        Dtype::F64 => {
            let (values, _) = tensor.bytes.as_chunks();
            values
                .iter()
                .map(|value| f64::from_le_bytes(*value))
                .collect()
        }
        other => panic!("{other:?}"),
    }
}

fn tensor(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values = (0..len).flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes());
    Tensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: values.collect(),
    }
}

/// Of `tests/golden`; the name begins with the operation's.
fn golden(case: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
    Path::new(folder).join(format!("{case}.safetensors"))
}

/// The results among the tensors of a golden file are f64.
fn split(case: &str) -> (Tensors, Tensors) {
    let tensors = read(&golden(case)).into_iter();
    tensors.partition(|(_, tensor)| tensor.dtype != Dtype::F64)
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `run OP` on `tensors`; what it printed, and the results if there are any.
    fn run(&self, op: &str, tensors: &Tensors, options: &[&str]) -> (Output, Option<Tensors>) {
        let (input, output) = (self.path("in.safetensors"), self.path("out.safetensors"));
        write(&input, tensors);
        let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
        let files = ["run", op, "--input", input, "--output", output];
        let done = gatefold(&[&files, options].concat());
        let results = self.path("out.safetensors");
        (done, results.exists().then(|| read(&results)))
    }
}

/// Outputs of `run` against those of the golden file, in units of the largest of each tensor.
fn agrees(case: &str, options: &[&str], tolerance: f64) {
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

const GOLDEN: [(&str, &[&str]); 11] = [
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
];

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

/// One line, the exit code, no result, nothing left beside it.
fn refused(tensors: &Tensors, options: &[&str], code: i32, says: &str) {
    let folder = Folder::new();
    let (done, results) = folder.run("attention", tensors, options);
    let error = text(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{options:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(
        error.starts_with("error: ") && error.contains(says),
        "{says}: {error}"
    );
    assert!(done.stdout.is_empty() && results.is_none(), "{options:?}");
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 1);
}

fn with(name: &str, shape: &[usize]) -> Tensors {
    let mut tensors = plain();
    tensors.insert(name.into(), tensor(shape));
    tensors
}

fn plain() -> Tensors {
    [
        ("query", [2, 4, 3, 8]),
        ("key", [2, 2, 5, 8]),
        ("value", [2, 2, 5, 6]),
    ]
    .map(|(name, shape)| (name.to_owned(), tensor(&shape)))
    .into()
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    for (name, shape, says) in [
        (
            "key",
            &[2, 3][..],
            "key: shape [2, 3], expected [2, num_kv_heads, kv_len, 8]",
        ),
        (
            "query",
            &[0, 1],
            "query: shape [0, 1], expected [batch, num_heads, q_len, head_dim]",
        ),
        (
            "key",
            &[2, 2, 5, 7],
            "key: shape [2, 2, 5, 7], expected [2, num_kv_heads, kv_len, 8]",
        ),
        (
            "key",
            &[3, 2, 5, 8],
            "key: shape [3, 2, 5, 8], expected [2, num_kv_heads, kv_len, 8]",
        ),
        (
            "value",
            &[2, 2, 4, 6],
            "value: shape [2, 2, 4, 6], expected [2, 2, 5, value_dim]",
        ),
        (
            "value",
            &[2, 2, 5, 0],
            "value: shape [2, 2, 5, 0], expected value_dim of at least 1",
        ),
        (
            "query",
            &[2, 3, 3, 8],
            "query: shape [2, 3, 3, 8], expected num_heads a multiple of the 2",
        ),
        (
            "quary",
            &[1],
            "quary: unknown tensor; attention reads query, key, value, bias",
        ),
        ("bias", &[3, 5], "bias is not yet supported"),
    ] {
        refused(&with(name, shape), &["--reference"], 2, says);
    }
    let mut missing = plain();
    missing.remove("key");
    refused(&missing, &[], 2, "key: is needed and missing");
    let mut integers = plain();
    let query = integers.get_mut("query").unwrap();
    *query = Tensor {
        dtype: Dtype::I32,
        ..query.clone()
    };
    refused(
        &integers,
        &[],
        2,
        "query: type I64, expected F32, F16 or BF16",
    );
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for (options, says) in [
        (&["--causal", "sideways"][..], "--causal"),
        (&["--scale", "nan"], "--scale"),
        (&["--variant", "nonsense"], "--variant"),
        (&["--dropout", "1.5"], "--dropout"),
        (&["--wobble"], "--wobble"),
        (&["--softcap", "5"], "--softcap is not yet supported"),
        (
            &["--reference", "--window-left", "2"],
            "--window-left is not yet supported",
        ),
        (&["--grad"], "--grad is not yet supported"),
    ] {
        refused(&plain(), options, 2, says);
    }
    refused(
        &plain(),
        &["--adapter", "no such adapter"],
        3,
        "no such adapter",
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = Folder::new();
    let good = folder.path("good.safetensors");
    write(&good, &plain());
    let prose = folder.path("prose.txt");
    std::fs::write(&prose, "not a tensor\n".repeat(20)).unwrap();
    let inside = folder.path("inside");
    std::fs::create_dir(&inside).unwrap();
    let out = folder.path("out.safetensors");
    let nowhere = folder.path("absent").join("out.safetensors");
    for (input, output) in [
        (&prose, &out),
        (&folder.path("absent.safetensors"), &out),
        (&inside, &out),
        (&good, &inside),
        (&good, &nowhere),
    ] {
        let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
        let files = ["run", "attention", "--input", input, "--output", output];
        let done = gatefold(&[&files[..], &["--reference"]].concat());
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{error}");
        assert!(
            error.lines().count() == 1 && error.starts_with("error: "),
            "{error}"
        );
        assert!(!out.exists());
    }
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 3);
}

#[test]
fn an_older_result_survives_a_failure() {
    let folder = Folder::new();
    std::fs::write(folder.path("out.safetensors"), "older").unwrap();
    let (input, output) = (
        folder.path("in.safetensors"),
        folder.path("out.safetensors"),
    );
    write(&input, &with("key", &[1]));
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    let done = gatefold(&["run", "attention", "--input", input, "--output", output]);
    assert_eq!(done.status.code(), Some(2));
    assert_eq!(std::fs::read(output).unwrap(), b"older");
}

#[test]
fn what_is_not_there_yet_is_known_by_its_flags() {
    let pytorch = "--batch-first --nonlinearity tanh --clip 0.4 --tier persistent";
    let onnx = "--format onnx --clip 0.4 --input-forget --direction reverse --activations A,B,C";
    let keras = "--format keras --linear-before-reset 1";
    for (op, options) in [
        ("additive-attention", "--weights"),
        ("rnn", pytorch),
        ("lstm", onnx),
        ("gru", keras),
        ("lstm", "--grad"),
    ] {
        let options: Vec<_> = options.split_whitespace().collect();
        let tensors = split("lstm_plain").0;
        let (done, _) = Folder::new().run(op, &tensors, &options);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{op} {options:?}: {error}");
    }
}

#[test]
fn recurrent_tensors_that_do_not_fit_are_named() {
    let lstm = split("lstm_plain").0;
    let hidden = lstm["weight_hh_l0"].shape[1];
    for (op, name, shape, says) in [
        (
            "lstm",
            "h_0",
            &[1, 1][..],
            "h_0: shape [1, 1], expected [1, ",
        ),
        (
            "lstm",
            "weight_ih_l0",
            &[7, 3],
            "weight_ih_l0: shape [7, 3], expected [4 * hidden_size, ",
        ),
        (
            "lstm",
            "weight_ih_l1",
            &[4 * hidden, hidden],
            "weight_hh_l1: is needed and missing",
        ),
        (
            "lstm",
            "weight_ih",
            &[1],
            "weight_ih: unknown tensor; a recurrence reads input",
        ),
        (
            "lstm",
            "lengths",
            &[1],
            "lengths: type F32, expected I32 or I64",
        ),
        ("gru", "c_0", &[1], "c_0: only an lstm has a cell state"),
    ] {
        let mut tensors = lstm.clone();
        tensors.insert(name.into(), tensor(shape));
        let (done, results) = Folder::new().run(op, &tensors, &["--reference"]);
        let error = text(&done.stderr);
        assert!(
            done.status.code() == Some(2) && results.is_none(),
            "{error}"
        );
        assert!(
            error.lines().count() == 1 && error.contains(says),
            "{says}: {error}"
        );
    }
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

#[test]
fn bench_times_a_recurrence_per_step() {
    if !has_adapter() {
        return;
    }
    let args =
        "bench gru --batch 2 --seq-len 5 --input-size 8 --hidden-size 13 --seconds 0.05 -o json";
    let done = gatefold(&args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let document: Value = serde_json::from_slice(&done.stdout).unwrap();
    let row = &document["rows"][0];
    let ratio = row["median_us"].as_f64().unwrap() / row["us_per_step"].as_f64().unwrap();
    assert!((ratio - 5.0).abs() < 1e-6);
    assert_eq!(row["shape"]["hidden_size"], 13);
}

#[test]
fn bench_writes_one_row_per_shape_with_every_field() {
    if !has_adapter() {
        return;
    }
    let args = "bench attention --batch 1 --heads 2 --kv-heads 1 --q-len 8,24 --kv-len 16-32*2 \
                --head-dim 16 --dtype f32 --causal --seconds 0.05 -o json";
    let done = gatefold(&args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let document: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    assert!(document["adapter"]["name"].is_string());
    assert!(document["peak"]["gflops"].as_f64().unwrap() > 0.0);
    let rows = document["rows"].as_array().unwrap();
    let shapes: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row["shape"]["q_len"].as_u64(),
                row["shape"]["kv_len"].as_u64(),
            )
        })
        .collect();
    let shape = |q_len, kv_len| (Some(q_len), Some(kv_len));
    assert_eq!(
        shapes,
        [shape(8, 16), shape(8, 32), shape(24, 16), shape(24, 32)]
    );
    for row in rows {
        let number = |name: &str| {
            row[name]
                .as_f64()
                .unwrap_or_else(|| panic!("{name}: {row}"))
        };
        assert_eq!(
            (&row["op"], &row["dtype"]),
            (&"attention".into(), &"f32".into())
        );
        assert!(row["variant"].is_string() && row["us_per_step"].is_null());
        assert!(number("p5_us") <= number("median_us") && number("median_us") <= number("p95_us"));
        assert!(
            number("median_us") > 0.0 && number("gflops") > 0.0 && number("gbytes_per_s") > 0.0
        );
        assert!((0.0..=100.0).contains(&number("percent_of_roof")));
        assert!((0.0..1e-4).contains(&number("error")) && number("dispatches") == 1.0);
        assert!(["timestamp", "wall"].contains(&row["clock"].as_str().unwrap()));
    }
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    for (args, says) in [
        ("--dtype f16", "--dtype f16 is not yet supported"),
        ("--dtype f64", "--dtype is f64"),
        ("--grad", "--grad is not yet supported"),
        ("--q-len 5-2", "--q-len"),
        ("--q-len 0", "--q-len is 0"),
        ("--heads 3 --kv-heads 2", "num_kv_heads is 2"),
        ("--head-dim 257", "head_dim is 257"),
    ] {
        let args = ["bench attention", args].join(" ");
        let done = gatefold(&args.split_whitespace().collect::<Vec<_>>());
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{args}: {error}");
        assert!(
            error.lines().count() == 1 && error.contains(says),
            "{error}"
        );
        assert!(done.stdout.is_empty());
    }
}

#[test]
fn verify_runs_what_the_filter_names_and_reports_it() {
    if !has_adapter() {
        return;
    }
    let folder = Folder::new();
    let report = ["junit", "json", "md"]
        .map(|kind| format!("{kind}={}", folder.path(kind).display()))
        .join(",");
    let done = gatefold(&["verify", "portable/offset", "--report", &report]);
    let out = text(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{out}");
    assert!(out.ends_with(" passed, 0 failed\n"), "{out}");
    assert!(
        out.lines()
            .rev()
            .skip(1)
            .all(|line| line.starts_with("pass attention/portable/offset"))
    );
    let json: Value = serde_json::from_slice(&std::fs::read(folder.path("json")).unwrap()).unwrap();
    assert_eq!(json["failed"], 0);
    assert_eq!(
        json["cases"].as_array().unwrap().len(),
        out.lines().count() - 1
    );
    assert!(
        std::fs::read_to_string(folder.path("junit"))
            .unwrap()
            .contains("<testsuite ")
    );
    assert!(
        std::fs::read_to_string(folder.path("md"))
            .unwrap()
            .starts_with('|')
    );

    let nothing = gatefold(&["verify", "no such case"]);
    assert_eq!(nothing.status.code(), Some(2));
    let nowhere = gatefold(&["verify", "--adapter", "no such adapter"]);
    assert_eq!(nowhere.status.code(), Some(3));
}

#[test]
fn info_names_adapters_and_what_would_run() {
    if !has_adapter() {
        return;
    }
    let done = gatefold(&["info", "-o", "json"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let document: Value = serde_json::from_slice(&done.stdout).unwrap();
    let adapters = document["adapters"].as_array().unwrap();
    assert!(!adapters.is_empty());
    for adapter in adapters {
        let operation = &adapter["operations"][0];
        assert_eq!(operation["op"], "attention");
        assert!(operation["variant"].is_string() && operation["why"].is_string());
    }
}

#[test]
fn help_and_version_are_no_failure() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["bench", "attention", "--help"],
    ] {
        let done = gatefold(args);
        assert_eq!(done.status.code(), Some(0));
        assert!(!done.stdout.is_empty() && done.stderr.is_empty());
    }
    assert_eq!(gatefold(&[]).status.code(), Some(2));
    assert_eq!(gatefold(&["wobble"]).status.code(), Some(2));
}
