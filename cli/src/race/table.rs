//! What is printed of a race.

use super::options::Options;
use super::report::{EMBEDDING, Race, Row};
use super::{plot, words};
use crate::args::Format;
use crate::error::Result;
use crate::report::{self, Cell};

pub fn print(race: &Race, options: &Options) -> Result<()> {
    let rows = race.rows.iter().chain(&race.training);
    let (header, rows): (&[&str], Vec<_>) = match options.output {
        Format::Csv => (&ALL, rows.map(all).collect()),
        _ => (&SHORT, rows.map(short).collect()),
    };
    let mut title = vec![race.adapter.describe()];
    if let Some(peak) = &race.peak {
        title.push(format!(
            "roof: {:.1} GFLOP/s, {:.1} GB/s, {:.1} us per dispatch; clock: {}",
            peak.gflops,
            peak.gbytes_per_s,
            peak.dispatch_us,
            race.clocks()
        ));
    }
    let [width, projections, text] = race.conditions();
    title.extend([width, projections, format!("{text}, through {EMBEDDING}")]);
    report::print(options.output, &title.join("\n"), header, &rows, race)?;
    if matches!(options.output, Format::Csv | Format::Json) {
        return Ok(());
    }
    let mut lines = vec![String::new()];
    lines.extend(race.kernels());
    lines.extend(race.stopped.iter().map(|stop| {
        let op = words::op(stop.op);
        let (pass, batch) = (if stop.grad { " training" } else { "" }, stop.batch);
        let (len, reason) = (stop.seq_len, &stop.reason);
        format!("{op}{pass}, batch {batch}, stops before {len} tokens: {reason}")
    }));
    let restless = race.restless();
    if restless > 0 {
        let all = race.rows.len() + race.training.len();
        lines.push(format!(
            "{restless} of {all} times vary by more than a factor of 2: something else runs here too"
        ));
    }
    if options.output == Format::Table && race.has_times() {
        lines.push(String::new());
        lines.push(plot::draw(race));
    }
    lines.push(String::new());
    lines.extend(race.sentences());
    lines.push(
        "checked against the f64 reference at every length: recurrences in their first 256\n\
         and last 32 steps, attention in queries at both ends, at tiles' edges, in between,\n\
         training (forward and backward) in the gradients of the last 32 inputs\n\
         times: medians of the quieter of two visits"
            .into(),
    );
    let files = if race.has_times() {
        "race.json and race.svg"
    } else {
        "race.json"
    };
    lines.push(format!(
        "written: {files} in {}\n",
        options.out_dir.display()
    ));
    report::out(&lines.join("\n"))
}

const SHORT: [&str; 10] = [
    "op", "batch", "tokens", "ms", "us/step", "tok/s", "% roof", "MiB", "disp.", "error",
];

fn short(row: &Row) -> Vec<Cell> {
    vec![
        Cell::text(match row.grad {
            true => format!("{} training", words::op(row.op)),
            false => words::op(row.op).to_owned(),
        }),
        Cell::number(f64::from(row.batch)),
        Cell::number(f64::from(row.seq_len)),
        match row.median_us {
            Some(us) => Cell::number(1e-3 * us),
            None => Cell::text("wrong"),
        },
        Cell::number(row.us_per_step),
        Cell::number(row.tokens_per_s),
        Cell::number(row.percent_of_roof),
        Cell::number(row.memory_bytes as f64 / f64::from(1 << 20)),
        Cell::number(f64::from(row.dispatches)),
        Cell::text(format_args!("{:.0e}", row.error)),
    ]
}

const ALL: [&str; 19] = [
    "op",
    "pass",
    "batch",
    "tokens",
    "variant",
    "tier",
    "kernel",
    "dispatches",
    "median us",
    "p5",
    "p95",
    "us/step",
    "tokens/s",
    "GFLOP/s",
    "GB/s",
    "% of roof",
    "memory bytes",
    "error",
    "clock",
];

fn all(row: &Row) -> Vec<Cell> {
    vec![
        Cell::text(row.op),
        Cell::text(if row.grad { "training" } else { "forward" }),
        Cell::number(f64::from(row.batch)),
        Cell::number(f64::from(row.seq_len)),
        Cell::text(&row.variant),
        Cell::text(row.tier.as_deref().unwrap_or_default()),
        Cell::text(&row.kernel),
        Cell::number(f64::from(row.dispatches)),
        Cell::number(row.median_us),
        Cell::number(row.p5_us),
        Cell::number(row.p95_us),
        Cell::number(row.us_per_step),
        Cell::number(row.tokens_per_s),
        Cell::number(row.gflops),
        Cell::number(row.gbytes_per_s),
        Cell::number(row.percent_of_roof),
        Cell::number(row.memory_bytes as f64),
        Cell::number(row.error),
        Cell::text(row.clock.unwrap_or("wrong result")),
    ]
}
