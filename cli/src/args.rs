//! The command line.

pub mod list;

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use gatefold::{Causal, ElementType, Variant};

use crate::error::Error;
use crate::{gradients, heatmap, ops, race};

/// Attention and recurrence kernels in WGSL: run, measure and verify them on this machine
#[derive(Debug, Parser)]
#[command(name = "gatefold", version, arg_required_else_help = true)]
pub enum Command {
    /// Adapters, and which variant of which operation would run there, and why
    Info(Info),
    /// The roof of this device: multiply-adds, bandwidth, dispatch latency
    Peak(Peak),
    /// Check every operation, variant and shape against the f64 reference
    Verify(Verify),
    /// Race RNN, LSTM and GRU against attention on a real text: a table, a picture, race.json
    Race(race::Options),
    /// Draw how gradients fade or grow on their way back through time: a table, a picture, gradients.json
    Gradients(gradients::Options),
    /// Draw where each query of an attention looks: a table, a picture, heatmap.json
    Heatmap(heatmap::Options),
    /// Time one operation over a grid of shapes
    Bench(Bench),
    /// Run one operation on your own tensors
    Run(Run),
}

#[derive(Debug, Args)]
pub struct Info {
    /// Only adapters whose name, backend or driver contains this
    #[arg(long)]
    pub adapter: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

#[derive(Debug, Args)]
pub struct Peak {
    #[command(flatten)]
    pub device: Device,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Seconds for each of the candidates
    #[arg(long, default_value_t = 0.3, value_parser = seconds)]
    pub seconds: f64,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// Only cases whose name contains this, for instance `attention/subgroup`
    #[arg(default_value = "", hide_default_value = true)]
    pub filter: String,
    /// Only adapters whose name, backend or driver contains this
    #[arg(long)]
    pub adapter: Option<String>,
    /// Also, on software adapters, the kernels that some of them take minutes to compile
    #[arg(long)]
    pub all: bool,
    /// Write reports: junit=FILE, json=FILE, md=FILE
    #[arg(long, value_delimiter = ',', value_parser = report_file)]
    pub report: Vec<(ReportKind, PathBuf)>,
    /// For each failure, write the kernel, its plan and its tensors to a folder in DIR
    #[arg(long, value_name = "DIR")]
    pub keep_failing: Option<PathBuf>,
    /// Seed of the random inputs
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    Junit,
    Json,
    Md,
}

#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    pub op: ops::BenchOp,
}

/// What every `bench OP` takes. Shapes are comma lists and ranges (1,8 or 128-16384*2 or 1-9+4); they
/// multiply out.
#[derive(Debug, Args)]
pub struct BenchCommon {
    #[command(flatten)]
    pub device: Device,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Element type of the large tensors: f32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: ElementType,
    /// Force a variant instead of the planned one
    #[arg(long, value_parser = variant)]
    pub variant: Option<Variant>,
    /// Time the backward pass too
    #[arg(long)]
    pub grad: bool,
    /// Seconds to measure each shape for
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub seconds: f64,
    /// Seed of the random inputs
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(subcommand)]
    pub op: ops::RunOp,
}

impl BenchCommon {
    /// For an operation that has no half storage.
    pub fn only_f32(&self) -> Result<(), Error> {
        match self.dtype {
            ElementType::F32 => Ok(()),
            other => Err(Error::not_yet(format_args!("--dtype {}", other.name()))),
        }
    }
}

/// What every `run OP` takes
#[derive(Debug, Args)]
pub struct RunCommon {
    /// Tensors to read
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Where the results go
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    #[command(flatten)]
    pub device: Device,
    /// Force a variant instead of the planned one
    #[arg(long, value_parser = variant)]
    pub variant: Option<Variant>,
    /// Compute with the f64 reference on the CPU instead
    #[arg(long)]
    pub reference: bool,
    /// Compute the gradients too
    #[arg(long)]
    pub grad: bool,
}

#[derive(Debug, Args)]
pub struct Device {
    /// The adapter whose name, backend or driver contains this; else WGPU_ADAPTER_NAME, else the best
    #[arg(long)]
    pub adapter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Md,
    Csv,
    Json,
}

pub fn causal(text: &str) -> Result<Causal, String> {
    match text {
        "top-left" => Ok(Causal::TopLeft),
        "bottom-right" => Ok(Causal::BottomRight),
        _ => text
            .parse()
            .map(Causal::Offset)
            .map_err(|_| "expected top-left, bottom-right or a whole number".into()),
    }
}

pub fn variant(text: &str) -> Result<Variant, String> {
    let names: Vec<_> = Variant::ALL.iter().map(|variant| variant.name()).collect();
    let at = names.iter().position(|name| *name == text);
    at.map(|at| Variant::ALL[at])
        .ok_or_else(|| format!("expected {}", names.join(" or ")))
}

fn dtype(text: &str) -> Result<ElementType, String> {
    let all = ElementType::ALL.iter().copied();
    all.into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| "expected f32, f16 or bf16".into())
}

pub fn finite(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err("expected a finite number".into()),
    }
}

pub fn probability(text: &str) -> Result<f32, String> {
    match finite(text) {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to below 1".into()),
    }
}

pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=3600.0).contains(&value) => Ok(value),
        _ => Err("expected 0 to 3600 seconds".into()),
    }
}

fn report_file(text: &str) -> Result<(ReportKind, PathBuf), String> {
    let expected = "expected junit=FILE, json=FILE or md=FILE";
    let (kind, file) = text.split_once('=').ok_or(expected)?;
    let kind = match kind {
        "junit" => ReportKind::Junit,
        "json" => ReportKind::Json,
        "md" => ReportKind::Md,
        _ => return Err(expected.into()),
    };
    if file.is_empty() {
        return Err(expected.into());
    }
    Ok((kind, file.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn causal_takes_names_and_numbers() {
        assert_eq!(causal("top-left"), Ok(Causal::TopLeft));
        assert_eq!(causal("bottom-right"), Ok(Causal::BottomRight));
        assert_eq!(causal("-3"), Ok(Causal::Offset(-3)));
        assert!(causal("sideways").is_err() && causal("1.5").is_err());
    }

    #[test]
    fn numbers_are_finite() {
        assert_eq!(finite("-0.5"), Ok(-0.5));
        assert!(finite("nan").is_err() && finite("inf").is_err() && finite("1e99").is_err());
    }

    #[test]
    fn reports_name_a_kind_and_a_file() {
        let expected = Ok((ReportKind::Junit, "a=b.xml".into()));
        assert_eq!(report_file("junit=a=b.xml"), expected);
        assert!(report_file("junit=").is_err() && report_file("x=y").is_err());
    }
}
