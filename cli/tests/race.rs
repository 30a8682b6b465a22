//! `gatefold race` as a user runs it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn race(folder: &Path, words: &[&str]) -> Output {
    command("race", folder, words)
}

fn command(command: &str, folder: &Path, words: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_gatefold");
    let runner = std::env::var("GATEFOLD_RUNNER").unwrap_or_default();
    let mut line = runner.split_whitespace().chain([program, command]);
    let mut run = Command::new(line.next().unwrap());
    run.args(line).args(words).arg("--out-dir").arg(folder);
    run.output().unwrap()
}

/// Whether there is an adapter, or its absence is allowed.
fn skipped(output: &Output) -> bool {
    let allowed = std::env::var("GATEFOLD_ALLOW_NO_GPU").is_ok_and(|value| value == "1");
    let skipped = allowed && output.status.code() == Some(3);
    if skipped {
        eprintln!("skipped: no adapter");
    }
    skipped
}

fn number(row: &Value, name: &str) -> f64 {
    row[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name} of {row}"))
}

const TINY: [&str; 7] = [
    "--quick",
    "--width",
    "64",
    "--seq-len",
    "32,64",
    "--seconds",
    "0.02",
];

fn check_rows(document: &Value, projections: bool) {
    let rows = document["rows"].as_array().unwrap();
    for op in ["rnn", "lstm", "gru", "mingru", "minlstm", "attention"] {
        let rows: Vec<_> = rows.iter().filter(|row| row["op"] == op).collect();
        assert_eq!(rows.len(), 2, "{op}");
        for row in rows {
            assert!(number(row, "error") < 1e-4, "{row}");
            assert!(
                (0.0..=100.0).contains(&number(row, "percent_of_roof")),
                "{row}"
            );
            assert!(number(row, "p5_us") <= number(row, "median_us"));
            assert!(number(row, "median_us") <= number(row, "p95_us"));
            for name in [
                "median_us",
                "tokens_per_s",
                "gflops",
                "dispatches",
                "memory_bytes",
            ] {
                assert!(number(row, name) > 0.0, "{name} of {row}");
            }
            let sequential = ["rnn", "lstm", "gru"].contains(&op);
            assert_eq!(row["us_per_step"].is_number(), sequential, "{row}");
            assert_eq!(row["grad"], false);
            assert_eq!(row["projections"], projections);
        }
    }
}

#[test]
fn a_tiny_race_leaves_rows_and_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let output = race(folder.path(), &TINY);
    if skipped(&output) {
        return;
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let text = fs::read_to_string(folder.path().join("race.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["schema"], 1);
    assert_eq!(document["crossings"].as_array().unwrap().len(), 3);
    check_rows(&document, true);
    let training = document["training"].as_array().unwrap();
    for op in ["rnn", "lstm", "gru", "mingru", "minlstm"] {
        let of_op = |row: &&Value| row["op"] == op && row["grad"] == true;
        let rows: Vec<_> = training.iter().filter(of_op).collect();
        let [row] = rows[..] else {
            panic!("{op}: {training:?}");
        };
        assert_eq!(row["seq_len"], 64);
        assert!(number(row, "error") < 1e-4, "{row}");
        assert!(number(row, "median_us") > 0.0, "{row}");
        // gates are kept, beside all that a forward pass needs
        let forward = document["rows"].as_array().unwrap().iter();
        let mut forward = forward.filter(|row| row["op"] == op && row["seq_len"] == 64);
        let needed = number(forward.next().unwrap(), "memory_bytes");
        assert!(number(row, "memory_bytes") > needed, "{row}");
    }

    let svg = fs::read_to_string(folder.path().join("race.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    for tag in ["svg", "text"] {
        let opened = svg.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, svg.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    for name in ["RNN", "LSTM", "GRU", "attention", "µs per step"] {
        assert!(svg.contains(name), "{name}");
    }
    let stdout = String::from_utf8(output.stdout).unwrap();
    for word in ["RNN", "▲", "tokens", "race.svg"] {
        assert!(stdout.contains(word), "{word}\n{stdout}");
    }
}

#[test]
fn without_projections_and_with_a_batch_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["--no-projections", "--batch", "3", "-o", "json"];
    let output = race(folder.path(), &[&TINY[..], &words].concat());
    if skipped(&output) {
        return;
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    check_rows(&document, false);
    let text = fs::read_to_string(folder.path().join("race.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
}

#[test]
fn several_batches_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["--batch", "2,1", "--no-training", "--seq-len", "16"];
    let tiny = [
        "--quick",
        "--width",
        "32",
        "--seconds",
        "0.02",
        "-o",
        "json",
    ];
    let output = race(folder.path(), &[&tiny[..], &words].concat());
    if skipped(&output) {
        return;
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["batch"], 2);
    let rows = document["rows"].as_array().unwrap();
    let batches: Vec<_> = rows
        .iter()
        .map(|row| row["shape"]["batch"].as_u64())
        .collect();
    assert_eq!(batches, [[Some(2); 6], [Some(1); 6]].concat());
    assert!(document["training"].as_array().unwrap().is_empty());
}

#[test]
fn gradients_leave_a_picture_and_norms() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["--seq-len", "12", "--hidden-size", "9", "--clip", "0.5"];
    let output = command("gradients", folder.path(), &words);
    if skipped(&output) {
        return;
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let text = fs::read_to_string(folder.path().join("gradients.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 14);
    for row in rows {
        let norms = row["norms"].as_array().unwrap();
        assert_eq!(norms.len(), 12);
        assert!(number(row, "error") < 1e-3, "{row}");
        let most = if row["clipped"] == true {
            0.5
        } else {
            f64::MAX
        };
        let within = |norm: &Value| norm.as_f64().unwrap() <= most * (1.0 + 1e-6);
        assert!(norms.iter().all(within), "{row}");
    }
    let per_step = |network: &str| {
        let of = |row: &&Value| row["network"] == network && row["clipped"] == false;
        number(rows.iter().find(of).unwrap(), "per_step")
    };
    assert!((per_step("RNN, radius 0.9") - 0.9).abs() < 1e-3);
    assert!((per_step("RNN, radius 1.1") - 1.1).abs() < 1e-3);
    let svg = fs::read_to_string(folder.path().join("gradients.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("forget bias 1"));
}

#[test]
fn a_text_of_the_users_own_is_read_and_repeated_and_a_width_need_not_be_round() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.txt");
    fs::write(&file, "abracadabra").unwrap();
    let words = [
        "--quick",
        "--seconds",
        "0.02",
        "--width",
        "24",
        "--seq-len",
        "9,20",
        "--text",
    ];
    let output = race(
        folder.path(),
        &[&words[..], &[file.to_str().unwrap()]].concat(),
    );
    if skipped(&output) {
        return;
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let text = fs::read_to_string(folder.path().join("race.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    check_rows(&document, true);
    assert_eq!(document["text"]["name"], "mine.txt");
    assert_eq!(document["text"]["bytes_used"], 11);
    assert_eq!(document["text"]["repeated"], true);
}

#[test]
fn bad_input_gets_one_line_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let empty = tempfile::NamedTempFile::new().unwrap();
    let cases = [
        vec!["--text", "no such file"],
        vec!["--text", empty.path().to_str().unwrap()],
        vec!["--heads", "7"],
        vec!["--seq-len", "0"],
        vec!["--seq-len", "many"],
        vec!["--width", "0"],
    ];
    let out = folder.path().join("out");
    for words in cases {
        let output = race(&out, &words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr}");
        assert!(output.stdout.is_empty() && !out.exists(), "{words:?}");
    }
}
