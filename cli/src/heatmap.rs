//! `gatefold heatmap`: the weights of an attention, where each query looks: a table, a picture, heatmap.json.

mod picture;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use gatefold::Chosen;
use serde::Serialize;

use crate::adapter::Adapter;
use crate::args::{self, Format};
use crate::error::{Error, Result};
use crate::ops::attention::{ScoreOptions, shown};
use crate::report::Cell;
use crate::{adapter, report, tensors};

#[derive(Debug, Args)]
pub struct Options {
    /// Tensors of `run attention`; value may be missing
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    #[command(flatten)]
    pub scores: ScoreOptions,
    /// The token of each key, one per line; of each query too, if there are as many
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// The token of each query, one per line
    #[arg(long, value_name = "FILE")]
    pub query_tokens: Option<PathBuf>,
    /// Row of the batch
    #[arg(long, default_value_t = 0)]
    pub batch: u32,
    /// Query heads, from the first to the last: 3 or 0-7 [default: the first 12]
    #[arg(long, value_name = "FIRST-LAST", value_parser = span)]
    pub heads: Option<Span>,
    /// Queries, from the first to the last [default: all]
    #[arg(long, value_name = "FIRST-LAST", value_parser = span)]
    pub rows: Option<Span>,
    /// Keys, from the first to the last [default: all]
    #[arg(long, value_name = "FIRST-LAST", value_parser = span)]
    pub keys: Option<Span>,
    /// Where heatmap.json and heatmap.svg go
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out_dir: PathBuf,
    #[command(flatten)]
    pub device: args::Device,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// The first and the last of some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(u32, u32);

fn span(text: &str) -> Result<Span, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(Span(first, last)),
        _ => Err("expected a number, or the first and the last: 0-7".into()),
    }
}

/// Panels that a page has room for.
const MOST_HEADS: u32 = 12;

#[derive(Debug, Serialize)]
pub struct Document {
    schema: u32,
    version: &'static str,
    pub adapter: Adapter,
    pub batch: u32,
    /// The first query and the first key.
    pub first_query: u32,
    pub first_key: u32,
    pub query_tokens: Option<Vec<String>>,
    pub key_tokens: Option<Vec<String>>,
    pub heads: Vec<Head>,
}

#[derive(Debug, Serialize)]
pub struct Head {
    pub head: u32,
    /// How many bits it takes to say which key a query looks at, on average over the queries: 0 if always one.
    entropy_bits: f64,
    largest: Largest,
    /// `[queries, keys]`
    pub weights: Vec<Vec<f32>>,
}

/// The pair with the largest weight, among queries that look at several keys if any does.
#[derive(Debug, Serialize)]
struct Largest {
    query: u32,
    key: u32,
    weight: f32,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let mut call = shown(options.scores, tensors::read(&options.input)?)?;
    let [batch, num_heads, q_len, kv_len] = call.lens();
    within("--batch", Some(Span(options.batch, options.batch)), batch)?;
    let some = Span(0, num_heads.clamp(1, MOST_HEADS) - 1);
    let heads = within("--heads", options.heads.or(Some(some)), num_heads)?;
    if heads.len() > MOST_HEADS as usize {
        let count = heads.len();
        return Err(Error::usage(format_args!(
            "--heads: {count} heads, expected at most {MOST_HEADS} on a page"
        )));
    }
    let rows = within("--rows", options.rows, q_len)?;
    let keys = within("--keys", options.keys, kv_len)?;
    if rows.is_empty() || keys.is_empty() {
        return Err(Error::usage("there are no queries or no keys to show"));
    }
    let key_tokens = tokens("--tokens", options.tokens.as_deref(), kv_len)?;
    let query_tokens = match (&options.query_tokens, &key_tokens) {
        (None, Some(tokens)) if q_len == kv_len => Some(tokens.clone()),
        (path, _) => tokens("--query-tokens", path.as_deref(), q_len)?,
    };

    let gpu = adapter::open(&options.device)?;
    adapter::announce(&gpu);
    let chosen = Chosen {
        first_head: heads.start,
        num_heads: heads.len() as u32,
        first_row: rows.start,
        num_rows: rows.len() as u32,
    };
    let weights = call.weights(&gpu, options.batch, chosen)?;
    let of_head = weights.chunks(rows.len() * kv_len as usize);
    let part = |tokens: Option<Vec<String>>, range: &Range<u32>| {
        tokens.map(|tokens| tokens[range.start as usize..range.end as usize].to_vec())
    };
    let document = Document {
        schema: 1,
        version: env!("CARGO_PKG_VERSION"),
        adapter: Adapter::of(gpu.info()),
        batch: options.batch,
        first_query: rows.start,
        first_key: keys.start,
        query_tokens: part(query_tokens, &rows),
        key_tokens: part(key_tokens, &keys),
        heads: heads
            .zip(of_head)
            .map(|(head, weights)| Head::new(head, weights, kv_len, &rows, &keys))
            .collect(),
    };
    let svg = picture::draw(&document)?;
    report::save(&options.out_dir, "heatmap.json", &report::json(&document)?)?;
    report::save(&options.out_dir, "heatmap.svg", &svg)?;
    print(&document, options.output, &options.out_dir)?;
    Ok(ExitCode::SUCCESS)
}

/// The numbers of a span of `0..len`, all if there is none.
fn within(flag: &str, span: Option<Span>, len: u32) -> Result<Range<u32>> {
    match span {
        None => Ok(0..len),
        Some(Span(first, last)) if last < len => Ok(first..last + 1),
        Some(Span(_, last)) => Err(Error::usage(format_args!(
            "{flag}: {last}, expected less than {len}, as many as there are"
        ))),
    }
}

/// The lines of a file, of which there must be `len`.
fn tokens(flag: &str, path: Option<&Path>, len: u32) -> Result<Option<Vec<String>>> {
    let Some(path) = path else { return Ok(None) };
    let text = fs::read_to_string(path)
        .map_err(|error| Error::usage(format_args!("{}: {error}", path.display())))?;
    let tokens: Vec<String> = text.lines().map(str::to_owned).collect();
    if tokens.len() != len as usize {
        return Err(Error::usage(format_args!(
            "{flag}: {} has {} lines, expected {len}, one for each",
            path.display(),
            tokens.len()
        )));
    }
    Ok(Some(tokens))
}

impl Head {
    /// `weights`: of the rows, and of all `kv_len` keys.
    fn new(head: u32, weights: &[f32], kv_len: u32, rows: &Range<u32>, keys: &Range<u32>) -> Self {
        let own = keys.start as usize..keys.end as usize;
        let all = weights.chunks(kv_len as usize);
        let entropies = all.clone().map(entropy);
        // a causal mask leaves the first query one key, which has a weight of 1 then
        let choices: Vec<bool> = all.clone().map(has_choice).collect();
        let any_choice = choices.contains(&true);
        let (sum, count) = entropies
            .flatten()
            .fold((0.0, 0_u32), |(sum, count), bits| (sum + bits, count + 1));
        let weights: Vec<Vec<f32>> = all.map(|row| row[own.clone()].to_vec()).collect();
        let mut largest = Largest {
            query: rows.start,
            key: keys.start,
            weight: 0.0,
        };
        for ((query, row), choice) in rows.clone().zip(&weights).zip(choices) {
            if any_choice && !choice {
                continue;
            }
            for (key, &weight) in keys.clone().zip(row) {
                if weight > largest.weight {
                    largest = Largest { query, key, weight };
                }
            }
        }
        Self {
            head,
            entropy_bits: sum / f64::from(count.max(1)),
            largest,
            weights,
        }
    }
}

/// Whether a query looks at several keys.
fn has_choice(weights: &[f32]) -> bool {
    weights.iter().filter(|&&weight| weight > 0.0).count() > 1
}

/// Of the weights of a query; none if it looks nowhere. What a sink takes is no key.
fn entropy(weights: &[f32]) -> Option<f64> {
    let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let shares = weights.iter().map(|&weight| f64::from(weight) / sum);
    let bits = shares
        .filter(|&share| share > 0.0)
        .map(|share| -share * share.log2());
    (sum > 0.0).then(|| bits.sum())
}

fn print(document: &Document, format: Format, folder: &Path) -> Result<()> {
    let name = |tokens: &Option<Vec<String>>, first: u32, at: u32| {
        let token = tokens.as_ref().map(|tokens| &tokens[(at - first) as usize]);
        token.map_or(at.to_string(), |token| format!("{at} {token:?}"))
    };
    let cells = |head: &Head| {
        let Largest { query, key, weight } = head.largest;
        vec![
            Cell::number(f64::from(head.head)),
            Cell::number(head.entropy_bits),
            Cell::number(f64::from(weight)),
            Cell::text(name(&document.query_tokens, document.first_query, query)),
            Cell::text(name(&document.key_tokens, document.first_key, key)),
        ]
    };
    let rows: Vec<_> = document.heads.iter().map(cells).collect();
    let title = format!(
        "{}\nwhere each query looks; batch row {}",
        document.adapter.describe(),
        document.batch
    );
    let header = [
        "head",
        "entropy, bits",
        "largest weight",
        "of query",
        "on key",
    ];
    report::print(format, &title, &header, &rows, document)?;
    if matches!(format, Format::Csv | Format::Json) {
        return Ok(());
    }
    let folder = folder.display();
    report::out(&format!(
        "\nwritten: heatmap.json and heatmap.svg in {folder}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_both_ends() {
        assert_eq!(span("3"), Ok(Span(3, 3)));
        assert_eq!(span("0-7"), Ok(Span(0, 7)));
        assert!(span("7-0").is_err() && span("-1").is_err() && span("a").is_err());
        assert_eq!(within("--rows", Some(Span(2, 4)), 5).unwrap(), 2..5);
        assert_eq!(within("--rows", None, 5).unwrap(), 0..5);
        let error = within("--rows", Some(Span(2, 5)), 5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--rows: 5, expected less than 5, as many as there are"
        );
    }

    #[test]
    fn the_largest_weight_is_one_of_several() {
        let weights = [1.0, 0.0, 0.0, 0.4, 0.6, 0.0, 0.2, 0.3, 0.5];
        let head = Head::new(0, &weights, 3, &(0..3), &(0..3));
        assert_eq!((head.largest.query, head.largest.key), (1, 1));
        let only = Head::new(0, &weights[..3], 3, &(0..1), &(0..3));
        assert_eq!((only.largest.query, only.largest.weight), (0, 1.0));
    }

    #[test]
    fn entropy_counts_the_keys_that_are_looked_at() {
        assert_eq!(entropy(&[0.25; 4]), Some(2.0));
        assert_eq!(entropy(&[0.0, 0.5, 0.0]), Some(0.0));
        assert_eq!(entropy(&[0.0; 3]), None);
    }
}
