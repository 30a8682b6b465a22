//! `gatefold verify`: every operation, variant and shape against the f64 reference.

mod keep;
mod reports;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use gatefold::{Gpu, Variant};

use crate::adapter::Adapter;
use crate::args::Format;
use crate::error::{Error, Result};
use crate::ops::{self, Problem};
use crate::tensors::{Data, Tensors};
use crate::{adapter, args, report};

/// What became of one case.
struct Outcome {
    adapter: String,
    /// `attention/subgroup/plain`
    name: String,
    shape: String,
    tile: String,
    /// The worst error, or what is wrong.
    result: Result<f64, String>,
    time: Duration,
}

struct Case {
    gpu: usize,
    variant: Variant,
    name: String,
    problem: usize,
}

pub fn run(args: &args::Verify) -> Result<ExitCode> {
    let gpus = adapter::open_all(args.adapter.as_deref())?;
    gpus.iter().for_each(adapter::announce);
    let problems = ops::cases();
    let cases = select(&gpus, &problems, args);
    if cases.is_empty() {
        let filter = &args.filter;
        return Err(Error::usage(format_args!(
            "no case has \"{filter}\" in its name"
        )));
    }
    let bar = report::progress(cases.len());
    let mut outcomes = Vec::new();
    for case in &cases {
        bar.set_message(case.name.clone());
        let problem = problems[case.problem].problem.as_ref();
        let (outcome, kept) = judge(args, case, &gpus[case.gpu], problem)?;
        if args.output == Format::Table {
            bar.suspend(|| report::out(&reports::line(&outcome)))?;
        }
        if let Some(folder) = kept {
            bar.suspend(|| report::log(format_args!("kept in {}", folder.display())));
        }
        outcomes.push(outcome);
        bar.inc(1);
    }
    bar.finish_and_clear();
    for (kind, file) in &args.report {
        reports::write(*kind, file, &outcomes)?;
    }
    let failed = outcomes
        .iter()
        .filter(|outcome| outcome.result.is_err())
        .count();
    let passed = outcomes.len() - failed;
    let summary = format!("{passed} passed, {failed} failed");
    if args.output == Format::Table {
        report::out(&format!("{summary}\n"))?;
    } else {
        reports::print(args.output, &summary, &outcomes)?;
        report::log(summary);
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Runs a case, and keeps what reproduces a failure where that is wanted.
fn judge(
    args: &args::Verify,
    case: &Case,
    gpu: &Gpu,
    problem: &dyn Problem,
) -> Result<(Outcome, Option<PathBuf>)> {
    let start = Instant::now();
    let inputs = problem.random(args.seed);
    let (got, result) = attempt(gpu, problem, case.variant, &inputs);
    let plan = problem.plan(gpu.context().capabilities(), Some(case.variant));
    let outcome = Outcome {
        adapter: gpu.describe(),
        name: case.name.clone(),
        shape: ops::describe(problem),
        tile: plan
            .as_ref()
            .map_or(String::new(), |plan| plan.describe.clone()),
        result,
        time: start.elapsed(),
    };
    let (Err(_), Some(folder)) = (&outcome.result, &args.keep_failing) else {
        return Ok((outcome, None));
    };
    let failure = keep::Failure {
        outcome: &outcome,
        adapter: &Adapter::of(gpu.info()),
        seed: args.seed,
        problem,
        plan: plan.ok(),
        inputs: &inputs,
        got: got.as_ref(),
    };
    let kept = failure.keep(folder)?;
    Ok((outcome, Some(kept)))
}

fn select(gpus: &[Gpu], problems: &[ops::Case], args: &args::Verify) -> Vec<Case> {
    let mut cases = Vec::new();
    for (gpu, device) in gpus.iter().enumerate() {
        for (problem, case) in problems.iter().enumerate() {
            if case.slow_to_compile && device.is_software() && !args.all {
                continue;
            }
            for variant in case.problem.variants(device.context().capabilities()) {
                let name = format!("{}/{variant}/{}", case.problem.op(), case.name);
                if name.contains(&args.filter) {
                    cases.push(Case {
                        gpu,
                        variant,
                        name,
                        problem,
                    });
                }
            }
        }
    }
    cases
}

/// Runs a case twice: the results must be right, and the same bit for bit.
fn attempt(
    gpu: &Gpu,
    problem: &dyn Problem,
    variant: Variant,
    inputs: &Tensors,
) -> (Option<Tensors>, Result<f64, String>) {
    let runs = || {
        let launch = problem.launch(gpu, Some(variant), inputs)?;
        Ok((launch.run(gpu)?, launch.run(gpu)?))
    };
    let (first, second) = match runs() {
        Ok(results) => results,
        Err(error) => {
            let error: Error = error;
            return (None, Err(error.to_string()));
        }
    };
    let result = match problem.check(variant, inputs, &first) {
        Ok(Ok(_)) if bits(&first) != bits(&second) => Err("two runs differ".into()),
        Ok(Ok(error)) => Ok(error),
        Ok(Err(difference)) => Err(difference.to_string()),
        Err(error) => Err(error.to_string()),
    };
    (Some(first), result)
}

fn bits(tensors: &Tensors) -> Vec<u32> {
    let values = |data: &Data| match data {
        Data::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
        _ => Vec::new(),
    };
    tensors
        .values()
        .flat_map(|tensor| values(&tensor.data))
        .collect()
}
