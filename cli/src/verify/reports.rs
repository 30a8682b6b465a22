//! The outcomes of `verify` as a line, JUnit, JSON and Markdown.

use std::path::Path;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

use super::Outcome;
use crate::args::{Format, ReportKind};
use crate::error::{Error, Result};
use crate::report::{self, Cell};

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    passed: usize,
    failed: usize,
    cases: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    adapter: &'a str,
    name: &'a str,
    shape: &'a str,
    tile: &'a str,
    passed: bool,
    error: Option<f64>,
    message: Option<&'a str>,
    seconds: f64,
}

pub fn line(outcome: &Outcome) -> String {
    let Outcome { name, tile, .. } = outcome;
    match &outcome.result {
        Ok(error) => format!("pass {name}: worst error {error:.1e} of its row ({tile})\n"),
        Err(message) => format!("FAIL {name}: {message} ({tile}, {})\n", outcome.adapter),
    }
}

pub fn write(kind: ReportKind, file: &Path, outcomes: &[Outcome]) -> Result<()> {
    let text = match kind {
        ReportKind::Junit => junit(outcomes)?,
        ReportKind::Json => report::json(&document(outcomes))?,
        ReportKind::Md => markdown(outcomes),
    };
    let failed = |error| Error::failed(format_args!("{}: {error}", file.display()));
    std::fs::write(file, text).map_err(failed)
}

fn junit(outcomes: &[Outcome]) -> Result<String> {
    let mut report = Report::new("gatefold verify");
    for group in outcomes.chunk_by(|a, b| a.adapter == b.adapter) {
        let mut suite = TestSuite::new(group[0].adapter.as_str());
        suite.set_time(group.iter().map(|outcome| outcome.time).sum::<Duration>());
        for outcome in group {
            let status = match &outcome.result {
                Ok(_) => TestCaseStatus::success(),
                Err(message) => {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message(message.as_str());
                    status
                }
            };
            let mut case = TestCase::new(outcome.name.as_str(), status);
            case.set_classname("gatefold").set_time(outcome.time);
            case.set_system_out(format!("{}\n{}", outcome.shape, outcome.tile));
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    report.to_string().map_err(Error::failed)
}

/// To standard output.
pub fn print(format: Format, title: &str, outcomes: &[Outcome]) -> Result<()> {
    report::print(format, title, &HEADER, &rows(outcomes), &document(outcomes))
}

fn document(outcomes: &[Outcome]) -> Document<'_> {
    let cases: Vec<_> = outcomes
        .iter()
        .map(|outcome| Entry {
            adapter: &outcome.adapter,
            name: &outcome.name,
            shape: &outcome.shape,
            tile: &outcome.tile,
            passed: outcome.result.is_ok(),
            error: outcome.result.as_ref().ok().copied(),
            message: outcome.result.as_ref().err().map(String::as_str),
            seconds: outcome.time.as_secs_f64(),
        })
        .collect();
    let passed = cases.iter().filter(|case| case.passed).count();
    Document {
        schema: 1,
        passed,
        failed: cases.len() - passed,
        cases,
    }
}

fn markdown(outcomes: &[Outcome]) -> String {
    report::table(Format::Md, &HEADER, &rows(outcomes)) + "\n"
}

const HEADER: [&str; 5] = ["adapter", "case", "shape", "tile", "result"];

fn rows(outcomes: &[Outcome]) -> Vec<Vec<Cell>> {
    outcomes
        .iter()
        .map(|outcome| {
            vec![
                Cell::text(&outcome.adapter),
                Cell::text(&outcome.name),
                Cell::text(&outcome.shape),
                Cell::text(&outcome.tile),
                Cell::text(match &outcome.result {
                    Ok(error) => format!("pass, worst error {error:.1e}"),
                    Err(message) => format!("FAIL {message}"),
                }),
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> Vec<Outcome> {
        let outcome = |name: &str, result| Outcome {
            adapter: "A <1>".into(),
            name: name.into(),
            shape: "batch=1".into(),
            tile: "blocked".into(),
            result,
            time: Duration::from_millis(5),
        };
        vec![
            outcome("x", Ok(1e-7)),
            outcome("y", Err("output[0] & more".into())),
        ]
    }

    #[test]
    fn junit_counts_and_escapes() {
        let text = junit(&outcomes()).unwrap();
        assert!(
            text.contains("tests=\"2\"") && text.contains("failures=\"1\""),
            "{text}"
        );
        assert!(text.contains("A &lt;1&gt;") && text.contains("output[0] &amp; more"));
    }

    #[test]
    fn json_has_the_same_counts() {
        let value: serde_json::Value = serde_json::to_value(document(&outcomes())).unwrap();
        assert_eq!(
            (value["passed"].as_u64(), value["failed"].as_u64()),
            (Some(1), Some(1))
        );
        assert_eq!(value["cases"][1]["message"], "output[0] & more");
    }

    #[test]
    fn markdown_is_a_table() {
        let text = markdown(&outcomes());
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().all(|line| line.starts_with('|')));
    }
}
