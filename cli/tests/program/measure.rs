//! `bench`, `verify`, `info`, help.

use serde_json::Value;

use super::{Folder, gatefold, has_adapter, text};

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
    let tier = row["tier"].as_str().unwrap();
    assert!(["stepped", "resident"].contains(&tier));
}

#[test]
fn bench_times_gradients_of_halves_with_the_batch_first() {
    if !has_adapter() {
        return;
    }
    // of many rows only a sample is checked
    for (dtype, batch) in [("f16", 2), ("bf16", 24)] {
        let args = format!(
            "bench lstm --batch {batch} --seq-len 300 --input-size 64 --hidden-size 64 --dtype {dtype} \
             --batch-first --grad --seconds 0.05 -o json"
        );
        let done = gatefold(&args.split_whitespace().collect::<Vec<_>>());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        let document: Value = serde_json::from_slice(&done.stdout).unwrap();
        let row = &document["rows"][0];
        assert_eq!(row["dtype"], dtype);
        assert!((0.0..3e-4).contains(&row["error"].as_f64().unwrap()));
    }
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    for (args, says) in [
        ("--dtype f64", "expected f32, f16 or bf16"),
        ("--q-len 5-2", "--q-len"),
        ("--q-len 0", "--q-len is 0"),
        ("--heads 3 --kv-heads 2", "num_kv_heads is 2"),
        ("--head-dim 513", "head_dim is 513"),
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
fn bench_says_what_is_too_large_before_it_makes_it() {
    for shape in [
        "lstm --seq-len 900000000 --input-size 8 --hidden-size 8 --tier resident",
        "lstm --seq-len 900000000 --input-size 8 --hidden-size 8 --tier stepped",
        "gru --seq-len 1000000000 --batch 1000000 --hidden-size 16000",
    ] {
        let args = ["bench", shape].join(" ");
        let done = gatefold(&args.split_whitespace().collect::<Vec<_>>());
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{shape}: {error}");
        assert!(error.contains("this shape needs"), "{shape}: {error}");
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
