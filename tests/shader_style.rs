//! The house style of the files in shaders/, as far as a machine can see it.

mod common;

use std::path::Path;

use common::launches::{Form, forms};

/// Stem and text of the files in shaders/.
fn files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let files = std::fs::read_dir(folder).unwrap().map(|file| {
        let path = file.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        (stem, std::fs::read_to_string(path).unwrap())
    });
    files.collect()
}

#[test]
fn every_file_is_part_of_some_kernel() {
    let forms = forms();
    for (stem, text) in files() {
        let used = |form: &Form| form.kernel.parts.contains(&text.as_str());
        assert!(forms.iter().any(used), "shaders/{stem}.wgsl is dead");
    }
}

#[test]
fn files_begin_with_a_header() {
    const BLOCKS: [&str; 7] = [
        "Layout",
        "Grid",
        "Workgroup",
        "Memory",
        "Holds",
        "Precision",
        "Parts",
    ];
    let files = files();
    for (stem, text) in &files {
        let header: Vec<&str> = text
            .lines()
            .map_while(|line| line.strip_prefix("//"))
            .collect();
        let title = header.first().copied().unwrap_or_default();
        assert!(
            title.starts_with(&format!(" {stem}: ")),
            "{stem}: the title is \"{title}\""
        );
        if !text.contains("@compute") {
            continue;
        }
        let first_word = |line: &&str| {
            line.split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let unindented = header.iter().filter(|line| !line.starts_with("  "));
        let words: Vec<String> = unindented.map(first_word).collect();
        let blocks: Vec<&String> = words
            .iter()
            .filter(|word| BLOCKS.contains(&word.as_str()))
            .collect();
        assert_eq!(blocks, BLOCKS, "{stem}: the blocks of the header");
        let parts = header
            .iter()
            .skip_while(|line| !line.starts_with(" Parts"))
            .flat_map(|line| line.split([' ', ',']));
        for part in parts.filter_map(|word| word.strip_suffix(".wgsl")) {
            assert!(
                files.iter().any(|(stem, _)| names(part, stem)),
                "{stem}: no part {part}"
            );
        }
    }
}

#[test]
fn files_keep_the_house_style() {
    for (stem, text) in files() {
        assert!(text.lines().count() <= 260, "{stem}: too long");
        let mut previous = "";
        for (number, line) in text.lines().enumerate() {
            let at = format!("shaders/{stem}.wgsl:{}: {line}", number + 1);
            assert!(!line.contains('\t'), "{at}: a tab");
            assert!(line.chars().count() <= 100, "{at}: more than 100 columns");
            let code = line.split("//").next().unwrap_or_default();
            assert!(
                !calls(code, "main"),
                "{at}: an entry point is named as its file"
            );
            let bounded = stem == "common" || !calls(code, "tanh");
            assert!(
                bounded,
                "{at}: tanh overflows on some drivers; call tanh_bounded"
            );
            let explained = previous.trim_start().starts_with("//");
            assert!(
                explained || !calls(code, "workgroupBarrier"),
                "{at}: what is visible or free now?"
            );
            previous = line;
        }
    }
}

/// Whether `part`, which may end in `*`, names the file.
fn names(part: &str, stem: &str) -> bool {
    match part.strip_suffix('*') {
        Some(family) => stem.starts_with(family),
        None => stem == part,
    }
}

/// Whether `name(` stands in `code`, not as the end of a longer name.
fn calls(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}(")).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}
