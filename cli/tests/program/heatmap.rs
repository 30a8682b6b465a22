//! `heatmap`: its numbers are those of `run --weights`; its mistakes.

use serde_json::Value;

use super::{Folder, Tensors, floats, gatefold, has_adapter, tensor, text, write};

fn tensors() -> Tensors {
    [
        ("query", [2, 4, 6, 8]),
        ("key", [2, 2, 6, 8]),
        ("value", [2, 2, 6, 3]),
    ]
    .map(|(name, shape)| (name.to_owned(), tensor(&shape)))
    .into()
}

#[test]
fn its_weights_are_those_of_run_and_the_picture_names_the_tokens() {
    if !has_adapter() {
        return;
    }
    let folder = Folder::new();
    let (_, results) = folder.run("attention", &tensors(), &["--weights", "--causal=top-left"]);
    let all = floats(&results.unwrap()["weights"]);

    let mut given = tensors();
    given.remove("value");
    let path = folder.0.path().join("shown.safetensors");
    write(&path, &given);
    let tokens = folder.0.path().join("tokens.txt");
    std::fs::write(&tokens, "The\ncat\n<sat>\non\nthe\nmat & more than that\n").unwrap();
    let out = folder.0.path().join("new");
    let [path, tokens, out_dir] = [&path, &tokens, &out].map(|path| path.to_str().unwrap());
    let done = gatefold(&[
        "heatmap",
        "--input",
        path,
        "--causal=top-left",
        "--tokens",
        tokens,
        "--batch",
        "1",
        "--heads",
        "1-2",
        "--rows",
        "2-5",
        "--out-dir",
        out_dir,
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("entropy"));

    let document = std::fs::read_to_string(out.join("heatmap.json")).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    let heads = document["heads"].as_array().unwrap();
    assert_eq!(heads.len(), 2);
    for (head, shown) in (1..3).zip(heads) {
        assert_eq!(shown["head"], head);
        for (query, row) in (2..6).zip(shown["weights"].as_array().unwrap()) {
            for (key, weight) in row.as_array().unwrap().iter().enumerate() {
                let expected = all[((4 + head) * 6 + query) * 6 + key];
                assert!(
                    (weight.as_f64().unwrap() - expected).abs() < 1e-6,
                    "{head} {query} {key}"
                );
            }
        }
    }
    let svg = std::fs::read_to_string(out.join("heatmap.svg")).unwrap();
    for word in ["cat", "&lt;sat&gt;", "mat␣&amp;␣more", "head 1", "head 2"] {
        assert!(svg.contains(word), "{word}");
    }
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let folder = Folder::new();
    let path = folder.0.path().join("shown.safetensors");
    write(&path, &tensors());
    let tokens = folder.0.path().join("tokens.txt");
    std::fs::write(&tokens, "one\ntwo\n").unwrap();
    let out = folder.0.path().join("new");
    let [path, tokens, out_dir] = [&path, &tokens, &out].map(|path| path.to_str().unwrap());
    for (options, says) in [
        (["--heads", "0-4"], "--heads: 4, expected less than 4"),
        (["--batch", "2"], "--batch: 2, expected less than 2"),
        (["--rows", "5-2"], "0-7"),
        (["--tokens", tokens], "has 2 lines, expected 6"),
        (["--tokens", "absent.txt"], "absent.txt"),
    ] {
        let words = [
            &["heatmap", "--input", path, "--out-dir", out_dir],
            &options[..],
        ]
        .concat();
        let done = gatefold(&words);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{error}");
        assert!(
            error.starts_with("error: ") && error.contains(says),
            "{says}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!out.exists());
    }
}
