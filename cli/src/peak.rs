//! `gatefold peak`: the roof of this device.

use std::process::ExitCode;

use gatefold::Gpu;
use gatefold::clock::Budget;
use serde::Serialize;

use crate::adapter::Adapter;
use crate::error::Result;
use crate::report::Cell;
use crate::{adapter, args, report};

/// The measured roof, as every report has it.
#[derive(Debug, Clone, Serialize)]
pub struct Peak {
    pub gflops: f64,
    pub gflops_kernel: String,
    /// Of cooperative matrices, on a device that has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooperative_gflops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooperative_kernel: Option<String>,
    pub gbytes_per_s: f64,
    pub gbytes_kernel: String,
    pub dispatch_us: f64,
    pub clock: &'static str,
}

impl From<&gatefold::peak::Peak> for Peak {
    fn from(peak: &gatefold::peak::Peak) -> Self {
        let cooperative = peak.cooperative.as_ref();
        Self {
            cooperative_gflops: cooperative.map(|&(gflops, _)| gflops),
            cooperative_kernel: cooperative.map(|(_, kernel)| kernel.clone()),
            gflops: peak.gflops,
            gflops_kernel: peak.gflops_kernel.clone(),
            gbytes_per_s: peak.gbytes_per_s,
            gbytes_kernel: peak.gbytes_kernel.clone(),
            dispatch_us: peak.dispatch_us,
            clock: peak.clock.name(),
        }
    }
}

#[derive(Serialize)]
struct Document {
    schema: u32,
    adapter: Adapter,
    peak: Peak,
}

pub fn measure(gpu: &Gpu, seconds: f64) -> Result<gatefold::peak::Peak> {
    Ok(gatefold::peak::Peak::measure(
        gpu,
        Budget::seconds(seconds),
    )?)
}

pub fn run(args: &args::Peak) -> Result<ExitCode> {
    let gpu = adapter::open(&args.device)?;
    adapter::announce(&gpu);
    let peak = Peak::from(&measure(&gpu, args.seconds)?);
    let row = |what: &str, value: f64, unit: &str, kernel: &str| {
        vec![
            Cell::text(what),
            Cell::number(value),
            Cell::text(unit),
            Cell::text(kernel),
        ]
    };
    let mut rows = vec![row(
        "f32 multiply-add",
        peak.gflops,
        "GFLOP/s",
        &peak.gflops_kernel,
    )];
    if let (Some(gflops), Some(kernel)) = (peak.cooperative_gflops, &peak.cooperative_kernel) {
        rows.push(row("f16 matrix multiply-add", gflops, "GFLOP/s", kernel));
    }
    rows.extend([
        row(
            "copy, read + write",
            peak.gbytes_per_s,
            "GB/s",
            &peak.gbytes_kernel,
        ),
        row(
            "dispatch to dispatch",
            peak.dispatch_us,
            "us",
            "one invocation",
        ),
    ]);
    let title = format!("{}; clock: {}", gpu.describe(), peak.clock);
    let header = ["peak", "value", "unit", "kernel"];
    let document = Document {
        schema: 1,
        adapter: Adapter::of(gpu.info()),
        peak,
    };
    report::print(args.output, &title, &header, &rows, &document)?;
    Ok(ExitCode::SUCCESS)
}
