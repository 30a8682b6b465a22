//! Mistakes: one line, the exit code, no result.

use safetensors::tensor::Dtype;

use super::{Folder, Tensor, Tensors, gatefold, split, tensor, text, write};

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
        (
            "bias",
            &[3, 6],
            "bias: shape [3, 6], expected what broadcasts to [2, 4, 3, 5]",
        ),
        ("bias", &[1; 5], "bias: shape [1, 1, 1, 1, 1], expected"),
        ("sinks", &[3], "sinks: shape [3], expected [num_heads], [4]"),
        (
            "kv_lengths",
            &[2],
            "kv_lengths: type F32, expected I32 or I64",
        ),
        ("mask", &[5], "mask: expected type BOOL or U8"),
        (
            "block_table",
            &[2, 1],
            "kv_lengths: is needed with a block table",
        ),
        ("cu_seqlens_q", &[3], "query: shape"),
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
        (&["--softcap=-5"], "--softcap"),
        (&["--window-left=-2"], "--window-left"),
        (&["--grad"], "grad_output: is needed and missing"),
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
            "h_0: shape [1, 1], expected [num_layers * num_directions, batch, hidden_size] = [1, ",
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
            "weight_ih: unknown tensor; lstm reads input",
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
