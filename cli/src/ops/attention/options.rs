//! Where problems come from: the flags and tensors of `run`, the grid of `bench`, the list of `verify`.

use clap::Args;
use gatefold::{AttentionConfig, AttentionShape, Causal};

use super::Attention;
use crate::args::list::{List, product, values};
use crate::args::{BenchCommon, RunCommon, causal, finite, probability};
use crate::error::{Error, Result};
use crate::ops::Problem;
use crate::tensors::{Tensors, floats, get, mismatch};

#[derive(Debug, Args)]
pub struct RunOptions {
    /// Where the diagonal of the causal mask lies
    #[arg(
        long,
        value_name = "top-left|bottom-right|OFFSET",
        allow_negative_numbers = true,
        value_parser = causal
    )]
    pub causal: Option<Causal>,
    /// Factor of the scores, if not 1 / sqrt(head_dim)
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub scale: Option<f32>,
    /// Keys that a query may look back
    #[arg(long)]
    pub window_left: Option<u32>,
    /// Keys that a query may look ahead
    #[arg(long)]
    pub window_right: Option<u32>,
    /// Bound of the scores: c * tanh(score / c)
    #[arg(long, value_parser = finite)]
    pub softcap: Option<f32>,
    /// Probability that a weight is dropped
    #[arg(long, value_parser = probability)]
    pub dropout: Option<f32>,
    /// Seed of the dropout
    #[arg(long)]
    pub seed: Option<u64>,
    /// Write the softmax's weights too
    #[arg(long)]
    pub weights: bool,
}

const KNOWN: [&str; 12] = [
    "query",
    "key",
    "value",
    "bias",
    "mask",
    "kv_lengths",
    "alibi_slopes",
    "sinks",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "block_table",
    "grad_output",
];

pub fn from_tensors(
    common: &RunCommon,
    options: &RunOptions,
    tensors: &Tensors,
) -> Result<Box<dyn Problem>> {
    if let Some(name) = tensors.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        let known = KNOWN.join(", ");
        return Err(Error::usage(format_args!(
            "{name}: unknown tensor; attention reads {known}"
        )));
    }
    unsupported(common, options, tensors)?;
    let (shape, config) = shape(tensors)?;
    Ok(Box::new(Attention {
        shape,
        config: AttentionConfig {
            causal: options.causal.unwrap_or_default(),
            scale: options.scale,
            ..config
        },
    }))
}

/// What the contract names and the library does not have; the reference must not leave it out silently
/// either.
fn unsupported(common: &RunCommon, options: &RunOptions, tensors: &Tensors) -> Result<()> {
    let flags = [
        ("--grad", common.grad),
        ("--window-left", options.window_left.is_some()),
        ("--window-right", options.window_right.is_some()),
        ("--softcap", options.softcap.is_some()),
        ("--dropout", options.dropout.is_some()),
        ("--seed", options.seed.is_some()),
        ("--weights", options.weights),
    ];
    let flag = flags
        .iter()
        .find(|(_, given)| *given)
        .map(|(flag, _)| *flag);
    let tensor = KNOWN[3..].iter().find(|&&name| tensors.contains_key(name));
    match flag.or(tensor.copied()) {
        Some(what) => Err(Error::not_yet(what)),
        None => Ok(()),
    }
}

/// The shape that the three tensors agree on.
fn shape(tensors: &Tensors) -> Result<(AttentionShape, AttentionConfig)> {
    let [b, h, s, d] = axes(tensors, "query", "[batch, num_heads, q_len, head_dim]")?;
    let wanted = format!("[{b}, num_kv_heads, kv_len, {d}]");
    let [key_b, kv_h, kv_len, key_d] = axes(tensors, "key", &wanted)?;
    if (key_b, key_d) != (b, d) {
        return Err(mismatch(tensors, "key", &wanted));
    }
    let wanted = format!("[{b}, {kv_h}, {kv_len}, value_dim]");
    let [value_b, value_h, value_len, value_dim] = axes(tensors, "value", &wanted)?;
    if [value_b, value_h, value_len] != [b, kv_h, kv_len] {
        return Err(mismatch(tensors, "value", &wanted));
    }
    for (name, axis, len) in [
        ("query", "num_heads", h),
        ("query", "head_dim", d),
        ("key", "num_kv_heads", kv_h),
        ("value", "value_dim", value_dim),
    ] {
        if len == 0 {
            return Err(mismatch(tensors, name, &format!("{axis} of at least 1")));
        }
    }
    if h % kv_h != 0 {
        let wanted = format!("num_heads a multiple of the {kv_h} of key");
        return Err(mismatch(tensors, "query", &wanted));
    }
    for name in super::INPUTS {
        floats(tensors, name)?;
    }
    let config = AttentionConfig {
        head_dim: d,
        value_dim: Some(value_dim),
        ..Default::default()
    };
    Ok((AttentionShape::new(b, h, kv_h, s, kv_len), config))
}

fn axes(tensors: &Tensors, name: &str, wanted: &str) -> Result<[u32; 4]> {
    let shape: Vec<u32> = get(tensors, name)?
        .shape
        .iter()
        .map(|&len| u32::try_from(len))
        .collect::<Result<_, _>>()
        .map_err(|_| mismatch(tensors, name, "axes below 2^32"))?;
    shape
        .try_into()
        .map_err(|_| mismatch(tensors, name, wanted))
}

#[derive(Debug, Args)]
pub struct BenchOptions {
    /// [default: 1]
    #[arg(long)]
    pub batch: Vec<List>,
    /// Query heads [default: 8]
    #[arg(long)]
    pub heads: Vec<List>,
    /// Key and value heads [default: as many as query heads]
    #[arg(long)]
    pub kv_heads: Vec<List>,
    /// [default: 512]
    #[arg(long)]
    pub q_len: Vec<List>,
    /// [default: q-len]
    #[arg(long)]
    pub kv_len: Vec<List>,
    /// [default: 64]
    #[arg(long)]
    pub head_dim: Vec<List>,
    /// [default: head-dim]
    #[arg(long)]
    pub value_dim: Vec<List>,
    /// Where the diagonal of the causal mask lies
    #[arg(
        long,
        value_name = "top-left|bottom-right|OFFSET",
        num_args = 0..=1,
        default_missing_value = "top-left",
        allow_negative_numbers = true,
        value_parser = causal
    )]
    pub causal: Option<Causal>,
}

pub fn grid(common: &BenchCommon, options: &BenchOptions) -> Result<Vec<Box<dyn Problem>>> {
    common.only_f32_forward()?;
    // 0 stands for "as the flag before"
    let axis = |lists: &[List], default| values(lists).unwrap_or(vec![default]);
    let axes = [
        axis(&options.batch, 1),
        axis(&options.heads, 8),
        axis(&options.kv_heads, 0),
        axis(&options.q_len, 512),
        axis(&options.kv_len, 0),
        axis(&options.head_dim, 64),
        axis(&options.value_dim, 0),
    ];
    let given = [
        ("--batch", &options.batch),
        ("--heads", &options.heads),
        ("--kv-heads", &options.kv_heads),
        ("--q-len", &options.q_len),
        ("--kv-len", &options.kv_len),
        ("--head-dim", &options.head_dim),
        ("--value-dim", &options.value_dim),
    ];
    for (flag, lists) in given {
        if values(lists).is_some_and(|values| values.contains(&0)) {
            return Err(Error::usage(format_args!(
                "{flag} is 0, expected at least 1"
            )));
        }
    }
    product(&axes)
        .into_iter()
        .map(|row| problem(&row, options.causal.unwrap_or_default()))
        .collect()
}

/// Batch, heads, key/value heads, q_len, kv_len, head_dim, value_dim; the third, fifth and last may be 0.
fn problem(row: &[u32], causal: Causal) -> Result<Box<dyn Problem>> {
    let or = |value: u32, other: u32| if value == 0 { other } else { value };
    let (heads, q_len, head_dim) = (row[1], row[3], row[5]);
    let kv_heads = or(row[2], heads);
    let problem = Attention {
        shape: AttentionShape::new(row[0], heads, kv_heads, q_len, or(row[4], q_len)),
        config: AttentionConfig {
            head_dim,
            value_dim: Some(or(row[6], head_dim)),
            causal,
            ..Default::default()
        },
    };
    // a shape that no device can run is a mistake of the command line: known before anything is measured
    match problem.plan(&gatefold::Capabilities::floor(), None) {
        Err(error @ gatefold::Error::Shape { .. }) => Err(error.into()),
        _ => Ok(Box::new(problem)),
    }
}

/// Common head dimensions.
pub fn showcase() -> Vec<Box<dyn Problem>> {
    [64, 128, 256]
        .into_iter()
        .map(|head_dim| {
            let problem = Attention {
                shape: AttentionShape::new(1, 8, 8, 512, 512),
                config: AttentionConfig {
                    head_dim,
                    value_dim: Some(head_dim),
                    ..Default::default()
                },
            };
            Box::new(problem) as Box<dyn Problem>
        })
        .collect()
}
