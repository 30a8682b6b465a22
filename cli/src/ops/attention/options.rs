//! Where problems come from: the flags and tensors of `run`, the grid of `bench`, the list of `verify`.

use clap::Args;
use gatefold::{
    AttentionConfig, AttentionShape, Axes, Causal, Chosen, ElementType, Layout, Packed, Paged,
};

use super::Attention;
use crate::args::list::{List, product, values};
use crate::args::{BenchCommon, RunCommon, causal, finite, probability};
use crate::error::{Error, Result};
use crate::ops::Problem;
use crate::tensors::{Data, Tensors, floats, get, integers, mismatch};

/// What makes scores of products, and which pairs there are.
#[derive(Debug, Default, Args)]
pub struct ScoreOptions {
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
}

#[derive(Debug, Default, Args)]
pub struct RunOptions {
    #[command(flatten)]
    pub scores: ScoreOptions,
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
    Ok(Box::new(problem_of(common.grad, options, tensors)?))
}

/// The call that the flags and tensors of `run` describe.
pub(super) fn problem_of(grad: bool, options: &RunOptions, tensors: &Tensors) -> Result<Attention> {
    if let Some(name) = tensors.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        let known = KNOWN.join(", ");
        return Err(Error::usage(format_args!(
            "{name}: unknown tensor; attention reads {known}"
        )));
    }
    let given = |name: &str| tensors.contains_key(name);
    let (shape, dims) = if given("cu_seqlens_q") || given("cu_seqlens_k") {
        packed(tensors)?
    } else if given("block_table") {
        paged(tensors)?
    } else {
        dense(tensors)?
    };
    for (name, axis, len) in [
        ("query", "num_heads", shape.num_heads),
        ("query", "head_dim", dims[0]),
        ("key", "num_kv_heads", shape.num_kv_heads),
        ("value", "value_dim", dims[1]),
    ] {
        if len == 0 {
            return Err(mismatch(tensors, name, &format!("{axis} of at least 1")));
        }
    }
    if shape.num_heads % shape.num_kv_heads != 0 {
        let wanted = format!("num_heads a multiple of the {} of key", shape.num_kv_heads);
        return Err(mismatch(tensors, "query", &wanted));
    }
    for name in super::INPUTS {
        floats(tensors, name)?;
    }
    let full = [shape.batch, shape.num_heads, shape.q_len, shape.kv_len];
    let (bias_shape, bias_axes) = broadcast(tensors, "bias", full)?;
    let (mask_shape, mask_axes) = broadcast(tensors, "mask", full)?;
    let bias = match given("bias") {
        true => {
            floats(tensors, "bias")?;
            Some(get(tensors, "bias")?.element)
        }
        false => None,
    };
    if given("mask") && !matches!(get(tensors, "mask")?.data, Data::Bool(_)) {
        return Err(Error::usage("mask: expected type BOOL or U8"));
    }
    for name in ["alibi_slopes", "sinks"] {
        if given(name) {
            floats(tensors, name)?;
            expect(tensors, name, &[shape.num_heads as usize], "[num_heads]")?;
        }
    }
    if given("kv_lengths") {
        lengths(tensors, &shape)?;
    }
    if options.scores.softcap.is_some_and(|cap| cap <= 0.0) {
        return Err(Error::usage("--softcap: expected a number above 0"));
    }
    let problem = Attention {
        shape: AttentionShape {
            bias_axes,
            mask_axes,
            seed: options.seed.unwrap_or(0),
            ..shape
        },
        config: AttentionConfig {
            head_dim: dims[0],
            value_dim: Some(dims[1]),
            element: element(tensors),
            scale: options.scores.scale,
            causal: options.scores.causal.unwrap_or_default(),
            window_left: options.scores.window_left,
            window_right: options.scores.window_right,
            softcap: options.scores.softcap,
            dropout: options.dropout.filter(|&probability| probability > 0.0),
            bias,
            mask: given("mask"),
            alibi: given("alibi_slopes"),
            sinks: given("sinks"),
            variant: None,
        },
        kv_lengths: given("kv_lengths"),
        bias_shape,
        mask_shape,
        grad,
        weights: options.weights.then(|| Chosen::all(&shape)),
    };
    if grad {
        floats(tensors, "grad_output")?;
        let [.., output] = problem.dims();
        expect(tensors, "grad_output", &output, "the shape of the output")?;
    }
    possible(&problem)?;
    Ok(problem)
}

/// What no device can run is a mistake of the user's: known before a device is opened.
fn possible(problem: &Attention) -> Result<()> {
    match problem.plan(&gatefold::Capabilities::floor(), None) {
        Err(error @ (gatefold::Error::Shape { .. } | gatefold::Error::Operand { .. })) => {
            Err(error.into())
        }
        _ => Ok(()),
    }
}

/// How query, key and value are stored, if alike; else they are widened.
fn element(tensors: &Tensors) -> ElementType {
    let [query, key, value] =
        super::INPUTS.map(|name| tensors.get(name).map_or(ElementType::F32, |x| x.element));
    if query == key && key == value {
        query
    } else {
        ElementType::F32
    }
}

fn expect(tensors: &Tensors, name: &str, shape: &[usize], words: &str) -> Result<()> {
    if get(tensors, name)?.shape != shape {
        return Err(mismatch(tensors, name, &format!("{words}, {shape:?}")));
    }
    Ok(())
}

/// Shape and axes of a tensor that broadcasts to `[batch, num_heads, q_len, kv_len]`, if it is there.
fn broadcast(tensors: &Tensors, name: &str, full: [u32; 4]) -> Result<(Vec<usize>, Axes)> {
    let Some(tensor) = tensors.get(name) else {
        return Ok((Vec::new(), Axes::ALL));
    };
    let wrong = || mismatch(tensors, name, &format!("what broadcasts to {full:?}"));
    let rank = tensor.shape.len();
    if !(1..=4).contains(&rank) {
        return Err(wrong());
    }
    let mut has = [false; 4];
    for (axis, &len) in tensor.shape.iter().rev().enumerate() {
        let whole = full[3 - axis] as usize;
        if len != 1 && len != whole {
            return Err(wrong());
        }
        has[3 - axis] = len != 1;
    }
    let [batch, head, query, key] = has;
    let axes = Axes {
        batch,
        head,
        query,
        key,
    };
    Ok((tensor.shape.clone(), axes))
}

/// `kv_lengths` holds a number of keys for each batch row.
fn lengths(tensors: &Tensors, shape: &AttentionShape) -> Result<()> {
    let lengths = integers(tensors, "kv_lengths")?;
    expect(tensors, "kv_lengths", &[shape.batch as usize], "[batch]")?;
    let most = i64::from(shape.kv_len);
    if let Some((row, len)) = lengths
        .iter()
        .enumerate()
        .find(|(_, len)| !(0..=most).contains(len))
    {
        return Err(Error::usage(format_args!(
            "kv_lengths[{row}] is {len}, expected 0 to {most}, the keys there are"
        )));
    }
    Ok(())
}

type Shape = (AttentionShape, [u32; 2]);

/// `[batch, heads, seq_len, dim]` each.
fn dense(tensors: &Tensors) -> Result<Shape> {
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
    Ok((AttentionShape::new(b, h, kv_h, s, kv_len), [d, value_dim]))
}

/// `[tokens, heads, dim]` each, and where the sequences begin.
fn packed(tensors: &Tensors) -> Result<Shape> {
    if tensors.contains_key("block_table") {
        return Err(Error::usage("block_table: packed sequences have no pages"));
    }
    let [query_tokens, h, d] = axes(tensors, "query", "[tokens, num_heads, head_dim]")?;
    let wanted = format!("[tokens, num_kv_heads, {d}]");
    let [key_tokens, kv_h, key_d] = axes(tensors, "key", &wanted)?;
    if key_d != d {
        return Err(mismatch(tensors, "key", &wanted));
    }
    let wanted = format!("[{key_tokens}, {kv_h}, value_dim]");
    let [value_tokens, value_h, value_dim] = axes(tensors, "value", &wanted)?;
    if [value_tokens, value_h] != [key_tokens, kv_h] {
        return Err(mismatch(tensors, "value", &wanted));
    }
    let (sequences, q_len) = starts(tensors, "cu_seqlens_q", query_tokens)?;
    let (key_sequences, kv_len) = starts(tensors, "cu_seqlens_k", key_tokens)?;
    if key_sequences != sequences {
        let wanted = format!("[{}], as cu_seqlens_q", sequences + 1);
        return Err(mismatch(tensors, "cu_seqlens_k", &wanted));
    }
    let shape = AttentionShape {
        packed: Some(Packed {
            query_tokens,
            key_tokens,
        }),
        ..AttentionShape::new(sequences, h, kv_h, q_len, kv_len)
    };
    Ok((shape.with_layout(Layout::Bshd), [d, value_dim]))
}

/// How many sequences there are, and the length of the longest.
fn starts(tensors: &Tensors, name: &str, tokens: u32) -> Result<(u32, u32)> {
    let starts = integers(tensors, name)?;
    if get(tensors, name)?.shape.len() != 1 || starts.is_empty() {
        return Err(mismatch(tensors, name, "[sequences + 1]"));
    }
    let ends = (starts[0], starts[starts.len() - 1]);
    if ends != (0, tokens.into()) || starts.windows(2).any(|pair| pair[0] > pair[1]) {
        return Err(Error::usage(format_args!(
            "{name}: {starts:?}, expected numbers that grow from 0 to {tokens}, the tokens there are"
        )));
    }
    let longest = starts.windows(2).map(|pair| pair[1] - pair[0]).max();
    Ok((starts.len() as u32 - 1, longest.unwrap_or(0) as u32))
}

/// Keys and values `[num_blocks, num_kv_heads, block_size, dim]`, and the pages of each batch row.
fn paged(tensors: &Tensors) -> Result<Shape> {
    let [b, h, s, d] = axes(tensors, "query", "[batch, num_heads, q_len, head_dim]")?;
    let wanted = format!("[num_blocks, num_kv_heads, block_size, {d}]");
    let [num_blocks, kv_h, block_size, key_d] = axes(tensors, "key", &wanted)?;
    if key_d != d || num_blocks == 0 || block_size == 0 {
        return Err(mismatch(tensors, "key", &wanted));
    }
    let wanted = format!("[{num_blocks}, {kv_h}, {block_size}, value_dim]");
    let [value_blocks, value_h, value_size, value_dim] = axes(tensors, "value", &wanted)?;
    if [value_blocks, value_h, value_size] != [num_blocks, kv_h, block_size] {
        return Err(mismatch(tensors, "value", &wanted));
    }
    let wanted = format!("[{b}, max_blocks]");
    let [table_b, max_blocks] = axes(tensors, "block_table", &wanted)?;
    if table_b != b {
        return Err(mismatch(tensors, "block_table", &wanted));
    }
    if !tensors.contains_key("kv_lengths") {
        return Err(Error::usage(
            "kv_lengths: is needed with a block table and missing",
        ));
    }
    let kv_len = max_blocks.checked_mul(block_size);
    let kv_len = kv_len.ok_or_else(|| mismatch(tensors, "block_table", "fewer pages"))?;
    let shape = AttentionShape {
        paged: Some(Paged {
            num_blocks,
            block_size,
            max_blocks,
        }),
        ..AttentionShape::new(b, h, kv_h, s, kv_len)
    };
    lengths(tensors, &shape)?;
    let table = integers(tensors, "block_table")?;
    for (row, &len) in integers(tensors, "kv_lengths")?.iter().enumerate() {
        let pages = &table[row * max_blocks as usize..][..max_blocks as usize];
        let used = (len as u64).div_ceil(block_size.into()) as usize;
        let bad = pages[..used]
            .iter()
            .position(|page| !(0..num_blocks.into()).contains(page));
        if let Some(at) = bad {
            let page = pages[at];
            return Err(Error::usage(format_args!(
                "block_table[{row}, {at}] is {page}, expected 0 to {}",
                num_blocks - 1
            )));
        }
    }
    Ok((shape, [d, value_dim]))
}

fn axes<const N: usize>(tensors: &Tensors, name: &str, wanted: &str) -> Result<[u32; N]> {
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
        .map(|row| problem(&row, options.causal.unwrap_or_default(), common))
        .collect()
}

/// Batch, heads, key/value heads, q_len, kv_len, head_dim, value_dim; the third, fifth and last may be 0.
fn problem(row: &[u32], causal: Causal, common: &BenchCommon) -> Result<Box<dyn Problem>> {
    let or = |value: u32, other: u32| if value == 0 { other } else { value };
    let (heads, q_len, head_dim) = (row[1], row[3], row[5]);
    let kv_heads = or(row[2], heads);
    let shape = AttentionShape::new(row[0], heads, kv_heads, q_len, or(row[4], q_len));
    let config = AttentionConfig {
        head_dim,
        value_dim: Some(or(row[6], head_dim)),
        element: common.dtype,
        causal,
        ..Default::default()
    };
    let problem = Attention {
        grad: common.grad,
        ..Attention::plain(shape, config)
    };
    // a shape that no device can run is a mistake of the command line: known before anything is measured
    possible(&problem)?;
    Ok(Box::new(problem))
}

/// Common head dimensions.
pub fn showcase() -> Vec<Box<dyn Problem>> {
    [64, 128, 256]
        .into_iter()
        .map(|head_dim| {
            let config = AttentionConfig {
                head_dim,
                ..Default::default()
            };
            let problem = Attention::plain(AttentionShape::new(1, 8, 8, 512, 512), config);
            Box::new(problem) as Box<dyn Problem>
        })
        .collect()
}
