//! `run attention` against the known answers of every option: the metadata of a golden file are its flags.

use std::collections::HashMap;

use safetensors::tensor::SafeTensors;

use super::run::agrees;
use super::{golden, has_adapter};

/// What a device must run, too: few, since a software adapter takes seconds to compile the kernels of each.
const ON_THE_DEVICE: [&str; 3] = [
    "attention_grad_bias_masks",
    "attention_grad_cache_alibi",
    "attention_grad_everything",
];

/// Those with gradients: name and flags.
fn cases() -> Vec<(String, Vec<String>)> {
    let folder = golden("any").parent().unwrap().to_owned();
    let mut cases = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name.starts_with("attention_grad_") {
            let bytes = std::fs::read(&path).unwrap();
            let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
            cases.push((name.to_owned(), flags(header.metadata().as_ref().unwrap())));
        }
    }
    cases.sort();
    cases
}

fn flags(metadata: &HashMap<String, String>) -> Vec<String> {
    let facts = ["op", "torch"];
    let options = metadata
        .iter()
        .filter(|(key, _)| !facts.contains(&key.as_str()));
    let flag = |(key, value): (&String, &String)| match value.as_str() {
        "true" => format!("--{key}"),
        value => format!("--{}={value}", key.replace('_', "-")),
    };
    options.map(flag).collect()
}

fn check(case: &str, flags: &[String], further: &[&str], tolerance: f64) {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    agrees(case, &[&flags, further].concat(), tolerance);
}

#[test]
fn the_reference_knows_every_option_of_attention_and_its_gradients() {
    let cases = cases();
    assert!(cases.len() >= 32, "{}", cases.len());
    for (case, flags) in cases {
        check(&case, &flags, &["--reference"], 1e-6);
    }
}

#[test]
fn the_device_knows_every_option_of_attention_and_its_gradients() {
    if !has_adapter() {
        return;
    }
    let cases: HashMap<_, _> = cases().into_iter().collect();
    for case in ON_THE_DEVICE {
        check(case, &cases[case], &[], 2e-5);
    }
}
