//! `gatefold bench`: one operation over a grid of shapes; first the result, then the time.

use std::process::ExitCode;

use gatefold::Gpu;
use gatefold::clock::{Budget, Clock};
use serde::Serialize;
use serde_json::Value;

use crate::adapter::Adapter;
use crate::error::Result;
use crate::ops::{self, Problem};
use crate::peak::Peak;
use crate::report::Cell;
use crate::{adapter, args, peak, report};

/// One shape. The numbers of a wrong result are absent.
#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    shape: serde_json::Map<String, Value>,
    dtype: &'static str,
    variant: String,
    /// How the steps of a recurrence are run.
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'static str>,
    dispatches: u32,
    median_us: Option<f64>,
    p5_us: Option<f64>,
    p95_us: Option<f64>,
    us_per_step: Option<f64>,
    gflops: Option<f64>,
    gbytes_per_s: Option<f64>,
    percent_of_roof: Option<f64>,
    error: f64,
    clock: Option<&'static str>,
    #[serde(skip)]
    describe: String,
}

#[derive(Serialize)]
struct Document {
    schema: u32,
    adapter: Adapter,
    peak: Peak,
    rows: Vec<Row>,
}

/// For each of the dozen candidates of the roof, in seconds.
const PEAK_SECONDS: f64 = 0.15;

pub fn run(args: args::Bench) -> Result<ExitCode> {
    let common = args.op.common();
    let problems = args.op.problems()?;
    let gpu = adapter::open(&common.device)?;
    if let (Some(variant), Some(problem)) = (common.variant, problems.first()) {
        problem.plan(gpu.context().capabilities(), Some(variant))?;
    }
    adapter::announce(&gpu);

    let bar = report::progress(1 + problems.len());
    bar.set_message("roof");
    let roof = peak::measure(&gpu, PEAK_SECONDS.min(common.seconds))?;
    bar.inc(1);
    let clock = Clock::new(&gpu)?;
    let mut rows = Vec::new();
    let mut failed = false;
    for problem in &problems {
        let describe = ops::describe(problem.as_ref());
        bar.set_message(describe.clone());
        match measure(&gpu, &clock, &roof, common, problem.as_ref()) {
            Ok(row) => {
                failed |= row.median_us.is_none();
                rows.push(row);
            }
            Err(error) => {
                failed = true;
                bar.suspend(|| report::log(format_args!("error: {describe}: {error}")));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let title = format!(
        "{}\nroof: {:.1} GFLOP/s, {:.1} GB/s, {:.1} us per dispatch ({})",
        gpu.describe(),
        roof.gflops,
        roof.gbytes_per_s,
        roof.dispatch_us,
        roof.clock,
    );
    let cells: Vec<_> = rows.iter().map(cells).collect();
    let document = Document {
        schema: 1,
        adapter: Adapter::of(gpu.info()),
        peak: Peak::from(&roof),
        rows,
    };
    report::print(common.output, &title, &HEADER, &cells, &document)?;
    Ok(ExitCode::from(u8::from(failed)))
}

fn measure(
    gpu: &Gpu,
    clock: &Clock,
    roof: &gatefold::peak::Peak,
    common: &args::BenchCommon,
    problem: &dyn Problem,
) -> Result<Row> {
    let plan = problem.plan(gpu.context().capabilities(), common.variant)?;
    ops::check_size(&plan, gpu)?;
    let inputs = problem.random(common.seed);
    let launch = problem.launch(gpu, common.variant, &inputs)?;
    let got = launch.run(gpu)?;
    let plan = &launch.plan;
    let describe = ops::describe(problem);
    let mut row = Row {
        op: problem.op(),
        shape: problem
            .shape()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        dtype: problem.dtype().name(),
        variant: plan.variant.to_string(),
        tier: problem.tier(plan),
        dispatches: launch.num_dispatches(),
        median_us: None,
        p5_us: None,
        p95_us: None,
        us_per_step: None,
        gflops: None,
        gbytes_per_s: None,
        percent_of_roof: None,
        error: 0.0,
        clock: None,
        describe,
    };
    match problem.check(plan.variant, &inputs, &got)? {
        Ok(error) => row.error = error,
        Err(difference) => {
            // JSON has no infinity, which a NaN in the result counts as
            row.error = difference.error.min(f64::MAX);
            report::log(format_args!("error: {}: {difference}", row.describe));
            return Ok(row);
        }
    }
    let timing = clock.measure(Budget::seconds(common.seconds), |pass| launch.record(pass))?;
    let seconds = 1e-6 * timing.median_us;
    row.median_us = Some(timing.median_us);
    row.p5_us = Some(timing.p5_us);
    row.p95_us = Some(timing.p95_us);
    row.us_per_step = problem
        .steps()
        .filter(|&steps| steps > 0)
        .map(|steps| timing.median_us / steps as f64);
    row.gflops = Some(1e-9 * plan.flops / seconds);
    row.gbytes_per_s = Some(1e-9 * plan.bytes / seconds);
    // small tensors stay in caches that are faster than the copy which measured the roof
    let percent = 100.0 * roof.seconds(plan.variant, plan.flops, plan.bytes) / seconds;
    row.percent_of_roof = Some(percent.min(100.0));
    row.clock = Some(timing.clock.name());
    Ok(row)
}

const HEADER: [&str; 15] = [
    "op",
    "shape",
    "dtype",
    "variant",
    "tier",
    "dispatches",
    "median us",
    "p5",
    "p95",
    "us/step",
    "GFLOP/s",
    "GB/s",
    "% of roof",
    "error",
    "clock",
];

fn cells(row: &Row) -> Vec<Cell> {
    vec![
        Cell::text(row.op),
        Cell::text(&row.describe),
        Cell::text(row.dtype),
        Cell::text(&row.variant),
        Cell::text(row.tier.unwrap_or("-")),
        Cell::number(f64::from(row.dispatches)),
        Cell::number(row.median_us),
        Cell::number(row.p5_us),
        Cell::number(row.p95_us),
        Cell::number(row.us_per_step),
        Cell::number(row.gflops),
        Cell::number(row.gbytes_per_s),
        Cell::number(row.percent_of_roof),
        Cell::number(row.error),
        Cell::text(row.clock.unwrap_or("wrong result")),
    ]
}
