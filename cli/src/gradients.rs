//! `gatefold gradients`: how the gradient of the last state fades or grows on its way back through time, for cells and
//! initialisations that are known for it, with and without clipping: a table, a picture, gradients.json.

mod networks;
mod picture;
mod sweep;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use gatefold::reference::compare::{Tolerance, compare};
use serde::Serialize;

use crate::adapter::Adapter;
use crate::args::{self, Format};
use crate::error::Result;
use crate::report::{Cell, log, progress};
use crate::{adapter, report};
use networks::{Network, networks};
use sweep::Sweep;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub device: args::Device,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Where gradients.json and gradients.svg go
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out_dir: PathBuf,
    /// Steps
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub seq_len: u32,
    /// Units
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub hidden_size: u32,
    /// The largest norm of a gradient that is handed back a step, where it is clipped
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub clip: f32,
    /// Seed of the weights and inputs
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number above 0".into()),
    }
}

#[derive(Debug, Serialize)]
pub struct Document {
    schema: u32,
    version: &'static str,
    pub adapter: Adapter,
    pub seq_len: u32,
    pub hidden_size: u32,
    pub clip: f32,
    seed: u64,
    loss: &'static str,
    checked: &'static str,
    pub rows: Vec<Row>,
    /// Whether a result was wrong.
    failed: bool,
}

/// A network, clipped or not. The numbers of a wrong result are absent.
#[derive(Debug, Serialize)]
pub struct Row {
    pub network: &'static str,
    pub op: &'static str,
    pub clipped: bool,
    /// The norm of dL/dh_t at t = 1, 2, ..., seq_len.
    pub norms: Option<Vec<f32>>,
    /// What a step back multiplies the norm with, in the geometric mean.
    pub per_step: Option<f64>,
    pub error: f64,
}

/// WGSL's tanh is exact to a fraction of 1, not of a small result, and a state that starts out small and grows
/// carries that along. A picture is good for three digits.
const TOLERANCE: Tolerance = Tolerance {
    factor: 8.0,
    floor: 1e-3,
};

const LOSS: &str = "the product of the last hidden state with a fixed random vector of norm 1";
const CHECKED: &str = "every norm against the f64 reference";

pub fn run(options: &Options) -> Result<ExitCode> {
    let gpu = adapter::open(&options.device)?;
    adapter::announce(&gpu);
    let networks = networks(options.hidden_size as usize, options.seed);
    let bar = progress(2 * networks.len());
    let mut document = Document {
        schema: 1,
        version: env!("CARGO_PKG_VERSION"),
        adapter: Adapter::of(gpu.info()),
        seq_len: options.seq_len,
        hidden_size: options.hidden_size,
        clip: options.clip,
        seed: options.seed,
        loss: LOSS,
        checked: CHECKED,
        rows: Vec::new(),
        failed: false,
    };
    for clip in [None, Some(options.clip)] {
        for network in &networks {
            bar.set_message(network.name);
            let sweep = Sweep::new(network, options.seq_len as usize, options.seed);
            let norms = match clip {
                None => sweep.whole(&gpu)?,
                Some(clip) => sweep.clipped(&gpu, clip)?,
            };
            let row = judge(network, &sweep, clip, norms);
            document.failed |= row.norms.is_none();
            document.rows.push(row);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    report::save(
        &options.out_dir,
        "gradients.json",
        &report::json(&document)?,
    )?;
    report::save(
        &options.out_dir,
        "gradients.svg",
        &picture::draw(&document)?,
    )?;
    print(&document, options)?;
    Ok(ExitCode::from(u8::from(document.failed)))
}

/// No number that the reference does not confirm.
fn judge(network: &Network, sweep: &Sweep<'_>, clip: Option<f32>, norms: Vec<f32>) -> Row {
    let truth = sweep.reference::<f64>(clip);
    let yardstick: Vec<f32> = sweep.reference(clip);
    let shape = [norms.len(), 1];
    let name = "grad_norms";
    let checked = compare(name, &shape, &norms, &truth, &yardstick, TOLERANCE);
    let mut row = Row {
        network: network.name,
        op: network.op(),
        clipped: clip.is_some(),
        norms: None,
        per_step: None,
        error: 0.0,
    };
    match checked {
        Ok(agreement) => {
            row.error = agreement.error;
            let (first, last) = (f64::from(norms[0]), f64::from(norms[norms.len() - 1]));
            let steps = (norms.len() - 1) as f64;
            row.per_step = Some((first / last).powf(1.0 / steps));
            row.norms = Some(norms);
        }
        Err(difference) => {
            // JSON has no infinity, which a NaN in the result counts as
            row.error = difference.error.min(f64::MAX);
            log(format_args!("error: {}: {difference}", network.name));
        }
    }
    row
}

fn print(document: &Document, options: &Options) -> Result<()> {
    let title = format!(
        "{}\nnorm of dL/dh_t; L is {LOSS}\n{} units, {} steps; clipped: no more than {} is handed back",
        document.adapter.describe(),
        document.hidden_size,
        document.seq_len,
        document.clip,
    );
    let header = [
        "network",
        "clipped",
        "at t = 1",
        "in the middle",
        "at the end",
        "per step",
        "error",
    ];
    let cells = |row: &Row| {
        let at = |place: fn(usize) -> usize| {
            let norms = row.norms.as_ref();
            norms.map(|norms| f64::from(norms[place(norms.len())]))
        };
        vec![
            Cell::text(row.network),
            Cell::text(if row.clipped { "yes" } else { "no" }),
            Cell::number(at(|_| 0)),
            Cell::number(at(|len| len / 2)),
            Cell::number(at(|len| len - 1)),
            Cell::number(row.per_step),
            Cell::text(format_args!("{:.0e}", row.error)),
        ]
    };
    let rows: Vec<_> = document.rows.iter().map(cells).collect();
    report::print(options.output, &title, &header, &rows, document)?;
    if matches!(options.output, Format::Csv | Format::Json) {
        return Ok(());
    }
    let folder = options.out_dir.display();
    report::out(&format!(
        "\nwritten: gradients.json and gradients.svg in {folder}\n"
    ))
}
