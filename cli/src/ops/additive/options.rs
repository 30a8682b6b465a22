//! Where problems come from: the flags and tensors of `run`, the grid of `bench`, the list of `info`.

use clap::Args;
use gatefold::{
    AdditiveAttentionConfig, AdditiveAttentionMask, AdditiveAttentionShape, ElementType,
};

use super::{Additive, INPUTS, booleans};
use crate::args::list::{List, product, values};
use crate::args::{BenchCommon, RunCommon};
use crate::error::{Error, Result};
use crate::ops::Problem;
use crate::tensors::{Tensors, floats, get, integers, mismatch};

#[derive(Debug, Args)]
pub struct RunOptions {
    /// Write the softmax's weights too
    #[arg(long)]
    pub weights: bool,
}

const KNOWN: [&str; 7] = [
    "query",
    "key",
    "value",
    "v",
    "mask",
    "kv_lengths",
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
            "{name}: unknown tensor; additive-attention reads {known}"
        )));
    }
    let (shape, config) = shape(tensors)?;
    if common.grad {
        let wanted = [shape.batch, shape.q_len, config.value_dim()];
        expect(tensors, "grad_output", &wanted)?;
        floats(tensors, "grad_output")?;
    }
    let problem = Additive {
        shape,
        config,
        weights: options.weights,
        grad: common.grad,
    };
    Ok(Box::new(problem))
}

/// The shape that the tensors agree on.
fn shape(tensors: &Tensors) -> Result<(AdditiveAttentionShape, AdditiveAttentionConfig)> {
    let [batch, q_len, dim] = axes(tensors, "query", "[batch, q_len, dim]")?;
    let wanted = format!("[{batch}, kv_len, {dim}]");
    let [key_batch, kv_len, key_dim] = axes(tensors, "key", &wanted)?;
    if (key_batch, key_dim) != (batch, dim) {
        return Err(mismatch(tensors, "key", &wanted));
    }
    let wanted = format!("[{batch}, {kv_len}, value_dim]");
    let [value_batch, value_len, value_dim] = axes(tensors, "value", &wanted)?;
    if (value_batch, value_len) != (batch, kv_len) {
        return Err(mismatch(tensors, "value", &wanted));
    }
    for (name, axis, len) in [("query", "dim", dim), ("value", "value_dim", value_dim)] {
        if len == 0 {
            return Err(mismatch(tensors, name, &format!("{axis} of at least 1")));
        }
    }
    expect(tensors, "v", &[dim])?;
    for name in INPUTS {
        floats(tensors, name)?;
    }
    let mut shape = AdditiveAttentionShape::new(batch, q_len, kv_len);
    shape.mask = mask(tensors, [batch, q_len, kv_len])?;
    shape.kv_lengths = kv_lengths(tensors, batch, kv_len)?;
    let config = AdditiveAttentionConfig {
        dim,
        value_dim: Some(value_dim),
        element: element(tensors),
        ..Default::default()
    };
    Ok((shape, config))
}

/// How the kernels read query, key and value: as they are stored, where that is the same for all three.
fn element(tensors: &Tensors) -> ElementType {
    let stored = |name: &str| tensors.get(name).map(|tensor| tensor.element);
    match stored("query") {
        Some(element)
            if INPUTS[1..3]
                .iter()
                .all(|name| stored(name) == Some(element)) =>
        {
            element
        }
        _ => ElementType::F32,
    }
}

/// The axes along which the mask, if there is one, is not broadcast.
fn mask(tensors: &Tensors, full: [u32; 3]) -> Result<Option<AdditiveAttentionMask>> {
    let Some(tensor) = tensors.get("mask") else {
        return Ok(None);
    };
    let [batch, q_len, kv_len] = full;
    let wanted = format!(
        "1 to 3 axes that broadcast to [{batch}, {q_len}, {kv_len}], each of length 1 or that"
    );
    let rank = tensor.shape.len();
    if !(1..=3).contains(&rank) {
        return Err(mismatch(tensors, "mask", &wanted));
    }
    let mut extents = [1; 3];
    extents[3 - rank..].copy_from_slice(&tensor.shape);
    let fits = extents
        .iter()
        .zip(full)
        .all(|(&len, full)| len == 1 || len == full as usize);
    if !fits {
        return Err(mismatch(tensors, "mask", &wanted));
    }
    booleans(tensors, "mask")?;
    let [batch, query, key] = [0, 1, 2].map(|axis| extents[axis] == full[axis] as usize);
    Ok(Some(AdditiveAttentionMask { batch, query, key }))
}

/// Whether there are lengths; they must lie within the keys.
fn kv_lengths(tensors: &Tensors, batch: u32, kv_len: u32) -> Result<bool> {
    if !tensors.contains_key("kv_lengths") {
        return Ok(false);
    }
    expect(tensors, "kv_lengths", &[batch])?;
    let lengths = integers(tensors, "kv_lengths")?;
    let outside = |len: &&i64| !(0..=i64::from(kv_len)).contains(*len);
    match lengths.iter().find(outside) {
        Some(len) => Err(Error::usage(format_args!(
            "kv_lengths: {len}, expected 0 to kv_len, {kv_len}"
        ))),
        None => Ok(true),
    }
}

fn expect(tensors: &Tensors, name: &str, wanted: &[u32]) -> Result<()> {
    let shape = &get(tensors, name)?.shape;
    let same = shape.len() == wanted.len()
        && shape
            .iter()
            .zip(wanted)
            .all(|(&got, &len)| got == len as usize);
    match same {
        true => Ok(()),
        false => Err(mismatch(tensors, name, &format!("{wanted:?}"))),
    }
}

fn axes(tensors: &Tensors, name: &str, wanted: &str) -> Result<[u32; 3]> {
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
    /// [default: 8]
    #[arg(long)]
    pub batch: Vec<List>,
    /// [default: 64]
    #[arg(long)]
    pub q_len: Vec<List>,
    /// [default: q-len]
    #[arg(long)]
    pub kv_len: Vec<List>,
    /// Length of the projected queries and keys [default: 128]
    #[arg(long)]
    pub dim: Vec<List>,
    /// [default: dim]
    #[arg(long)]
    pub value_dim: Vec<List>,
}

pub fn grid(common: &BenchCommon, options: &BenchOptions) -> Result<Vec<Box<dyn Problem>>> {
    // 0 stands for "as the flag before"
    let axis = |lists: &[List], default| values(lists).unwrap_or(vec![default]);
    let axes = [
        axis(&options.batch, 8),
        axis(&options.q_len, 64),
        axis(&options.kv_len, 0),
        axis(&options.dim, 128),
        axis(&options.value_dim, 0),
    ];
    let given = [
        ("--batch", &options.batch),
        ("--q-len", &options.q_len),
        ("--kv-len", &options.kv_len),
        ("--dim", &options.dim),
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
        .map(|row| problem(&row, common.dtype, common.grad))
        .collect()
}

/// Batch, q_len, kv_len, dim, value_dim; the third and the last may be 0.
fn problem(row: &[u32], element: ElementType, grad: bool) -> Result<Box<dyn Problem>> {
    let or = |value: u32, other: u32| if value == 0 { other } else { value };
    let problem = Additive {
        shape: AdditiveAttentionShape::new(row[0], row[1], or(row[2], row[1])),
        config: AdditiveAttentionConfig {
            dim: row[3],
            value_dim: Some(or(row[4], row[3])),
            element,
            ..Default::default()
        },
        weights: false,
        grad,
    };
    // a shape that no device can run is a mistake of the command line: known before anything is measured
    match problem.plan(&gatefold::Capabilities::floor(), None) {
        Err(error @ gatefold::Error::Shape { .. }) => Err(error.into()),
        _ => Ok(Box::new(problem)),
    }
}

/// A sentence and its translation.
pub fn showcase() -> Vec<Box<dyn Problem>> {
    let problem = Additive {
        shape: AdditiveAttentionShape::new(8, 64, 64),
        config: AdditiveAttentionConfig::default(),
        weights: false,
        grad: false,
    };
    vec![Box::new(problem)]
}
