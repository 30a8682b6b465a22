//! The operations, as the commands see them: each is a set of flags and a [`Problem`].
//!
//! A new operation is a file in `ops/`, an arm in the two enums of flags and in the three functions below.

pub mod additive;
pub mod attention;
mod launch;
pub mod min_recurrent;
mod random;
pub mod recurrent;
pub mod scan;

use clap::{Args, Subcommand};
use gatefold::kernel::Operand;
use gatefold::reference::compare::Difference;
use gatefold::{Capabilities, ElementType, Gpu, MinCell, Plan, Variant, wgpu};
use serde_json::Value;

use crate::args::list::{List, values};
use crate::args::{BenchCommon, RunCommon};
use crate::error::{Error, Result};
use crate::tensors::{Tensor, Tensors};

pub use launch::{Launch, Output};
pub use random::Random;
use recurrent::Op;

/// One shape of one operation with its options, checked.
pub trait Problem {
    /// The operation's name on the command line.
    fn op(&self) -> &'static str;

    /// The shape in the words of `bench`'s flags.
    fn shape(&self) -> Vec<(&'static str, Value)>;

    /// The options with which `run` computes this from the tensors of [`random`](Self::random).
    fn options(&self) -> Vec<String>;

    /// Steps of a recurrence, for times per step.
    fn steps(&self) -> Option<u64> {
        None
    }

    /// How its large tensors are stored.
    fn dtype(&self) -> ElementType {
        ElementType::F32
    }

    /// How the steps of a recurrence are run.
    fn tier(&self, _plan: &Plan) -> Option<&'static str> {
        None
    }

    /// The variants that a device can run, best first.
    fn variants(&self, capabilities: &Capabilities) -> Vec<Variant>;

    fn plan(
        &self,
        capabilities: &Capabilities,
        variant: Option<Variant>,
    ) -> Result<Plan, gatefold::Error>;

    /// Inputs that tell: neither trivial nor overflowing.
    fn random(&self, seed: u64) -> Tensors;

    /// Compiles, uploads and binds.
    fn launch(&self, gpu: &Gpu, variant: Option<Variant>, inputs: &Tensors) -> Result<Launch>;

    /// Every output, from the f64 reference.
    fn truth(&self, inputs: &Tensors) -> Result<Tensors>;

    /// The worst error of an element relative to its row, or the element that is wrong, of what `variant` has left.
    /// A problem too large for the reference is checked in a sample of its rows.
    fn check(
        &self,
        variant: Variant,
        inputs: &Tensors,
        got: &Tensors,
    ) -> Result<Result<f64, Box<Difference>>>;
}

/// Whether the tensors of a plan fit buffers of the device: said before inputs of that size are made.
pub fn check_size(plan: &Plan, gpu: &Gpu) -> Result<()> {
    let allowed = gpu.device().limits().max_buffer_size;
    let ends = plan
        .dispatches
        .iter()
        .flat_map(|dispatch| &dispatch.operands);
    let needed = ends
        .map(|operand| match operand {
            Operand::Slice { window, .. } => window.end,
            Operand::Unused => 0,
        })
        .max()
        .unwrap_or(0);
    if needed > allowed {
        let limit = "max_buffer_size";
        return Err(gatefold::Error::Limit {
            limit,
            needed,
            allowed,
        }
        .into());
    }
    Ok(())
}

/// `batch=1 heads=8 ...`
pub fn describe(problem: &dyn Problem) -> String {
    let word = |(name, value): (&str, Value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    };
    let words: Vec<_> = problem
        .shape()
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(word)
        .collect();
    words.join(" ")
}

/// The flags of an operation beside those that all have.
#[derive(Debug, Args)]
pub struct With<C: Args, O: Args> {
    #[command(flatten)]
    pub common: C,
    #[command(flatten)]
    pub options: O,
}

#[derive(Debug, Subcommand)]
pub enum RunOp {
    /// Scaled dot-product attention: query, key, value
    Attention(With<RunCommon, attention::RunOptions>),
    /// Additive attention: query, key, value, v
    AdditiveAttention(With<RunCommon, additive::RunOptions>),
    /// Elman RNN: input, weight_ih_l0, weight_hh_l0, ...
    Rnn(With<RunCommon, recurrent::RunOptions>),
    /// LSTM: input, weight_ih_l0, weight_hh_l0, ...
    Lstm(With<RunCommon, recurrent::RunOptions>),
    /// GRU: input, weight_ih_l0, weight_hh_l0, ...
    Gru(With<RunCommon, recurrent::RunOptions>),
    /// minGRU, parallel in time: input, weight_l0, bias_l0, ...
    Mingru(With<RunCommon, min_recurrent::RunOptions>),
    /// minLSTM, parallel in time: input, weight_l0, bias_l0, ...
    Minlstm(With<RunCommon, min_recurrent::RunOptions>),
    /// Linear recurrence h = a * h + b: a, b
    Scan(With<RunCommon, scan::RunOptions>),
}

impl RunOp {
    pub fn common(&self) -> &RunCommon {
        match self {
            Self::Attention(op) => &op.common,
            Self::AdditiveAttention(op) => &op.common,
            Self::Rnn(op) | Self::Lstm(op) | Self::Gru(op) => &op.common,
            Self::Mingru(op) | Self::Minlstm(op) => &op.common,
            Self::Scan(op) => &op.common,
        }
    }

    /// The problem that the flags and tensors of `run` pose.
    pub fn problem(&self, tensors: &Tensors) -> Result<Box<dyn Problem>> {
        match self {
            Self::Attention(op) => attention::from_tensors(&op.common, &op.options, tensors),
            Self::AdditiveAttention(op) => additive::from_tensors(&op.common, &op.options, tensors),
            Self::Rnn(op) => recurrent_problem(Op::Rnn, op, tensors),
            Self::Lstm(op) => recurrent_problem(Op::Lstm, op, tensors),
            Self::Gru(op) => recurrent_problem(Op::Gru, op, tensors),
            Self::Mingru(op) => min_recurrent_problem(MinCell::Gru, op, tensors),
            Self::Minlstm(op) => min_recurrent_problem(MinCell::Lstm, op, tensors),
            Self::Scan(op) => scan::from_tensors(&op.common, &op.options, tensors),
        }
    }
}

fn recurrent_problem(
    op: Op,
    with: &With<RunCommon, recurrent::RunOptions>,
    tensors: &Tensors,
) -> Result<Box<dyn Problem>> {
    recurrent::from_tensors(op, &with.common, &with.options, tensors)
}

fn min_recurrent_problem(
    cell: MinCell,
    with: &With<RunCommon, min_recurrent::RunOptions>,
    tensors: &Tensors,
) -> Result<Box<dyn Problem>> {
    min_recurrent::from_tensors(cell, &with.common, &with.options, tensors)
}

#[derive(Debug, Subcommand)]
pub enum BenchOp {
    /// Scaled dot-product attention
    Attention(With<BenchCommon, attention::BenchOptions>),
    /// Additive attention
    AdditiveAttention(With<BenchCommon, additive::BenchOptions>),
    /// Elman RNN
    Rnn(With<BenchCommon, recurrent::BenchOptions>),
    /// LSTM
    Lstm(With<BenchCommon, recurrent::BenchOptions>),
    /// GRU
    Gru(With<BenchCommon, recurrent::BenchOptions>),
    /// minGRU, parallel in time
    Mingru(With<BenchCommon, min_recurrent::BenchOptions>),
    /// minLSTM, parallel in time
    Minlstm(With<BenchCommon, min_recurrent::BenchOptions>),
    /// Linear recurrence h = a * h + b
    Scan(With<BenchCommon, scan::BenchOptions>),
}

impl BenchOp {
    pub fn common(&self) -> &BenchCommon {
        match self {
            Self::Attention(op) => &op.common,
            Self::AdditiveAttention(op) => &op.common,
            Self::Rnn(op) | Self::Lstm(op) | Self::Gru(op) => &op.common,
            Self::Mingru(op) | Self::Minlstm(op) => &op.common,
            Self::Scan(op) => &op.common,
        }
    }

    /// One problem per shape of the grid.
    pub fn problems(&self) -> Result<Vec<Box<dyn Problem>>> {
        match self {
            Self::Attention(op) => attention::grid(&op.common, &op.options),
            Self::AdditiveAttention(op) => additive::grid(&op.common, &op.options),
            Self::Rnn(op) => recurrent::grid(Op::Rnn, &op.common, &op.options),
            Self::Lstm(op) => recurrent::grid(Op::Lstm, &op.common, &op.options),
            Self::Gru(op) => recurrent::grid(Op::Gru, &op.common, &op.options),
            Self::Mingru(op) => min_recurrent::grid(MinCell::Gru, &op.common, &op.options),
            Self::Minlstm(op) => min_recurrent::grid(MinCell::Lstm, &op.common, &op.options),
            Self::Scan(op) => scan::grid(&op.common, &op.options),
        }
    }
}

/// What `verify` runs.
pub struct Case {
    pub name: String,
    pub problem: Box<dyn Problem>,
    /// Kernels that some software adapters compile for minutes: left out there unless asked for.
    pub slow_to_compile: bool,
}

pub fn cases() -> Vec<Case> {
    let mut cases = attention::cases();
    cases.extend(additive::cases());
    cases.extend(recurrent::cases());
    cases.extend(min_recurrent::cases());
    cases.extend(scan::cases());
    cases
}

/// Shapes of every day, for `info` to say what they run with.
pub fn showcase() -> Vec<Box<dyn Problem>> {
    let mut problems = attention::showcase();
    problems.extend(additive::showcase());
    problems.extend(recurrent::showcase());
    problems.extend(min_recurrent::showcase());
    problems.extend(scan::showcase());
    problems
}

/// The axes of a grid: flags with their lists and defaults.
fn grid_axes(given: &[(&str, &[List], u32)]) -> Result<Vec<Vec<u32>>> {
    let axis = |&(flag, lists, default): &(&str, &[List], u32)| {
        let axis = values(lists).unwrap_or(vec![default]);
        match axis.contains(&0) {
            true => Err(Error::usage(format_args!(
                "{flag} is 0, expected at least 1"
            ))),
            false => Ok(axis),
        }
    };
    given.iter().map(axis).collect()
}

/// Lengths of the sequences of a batch: a full one, an empty one, and some between.
fn some_lengths(batch: usize, seq_len: usize) -> Tensor {
    let length = |row: usize| match row {
        0 => seq_len,
        1 => 0,
        _ => row * 7 % (seq_len + 1),
    };
    let lengths = (0..batch).map(|row| length(row) as i64).collect();
    Tensor::i64(&[batch], lengths)
}

fn upload<T: bytemuck::Pod>(
    gpu: &Gpu,
    name: &str,
    values: Option<&[T]>,
) -> Result<Option<wgpu::Buffer>> {
    Ok(values.map(|values| gpu.upload(name, values)).transpose()?)
}

fn slice(buffer: &Option<wgpu::Buffer>) -> Option<wgpu::BufferSlice<'_>> {
    buffer.as_ref().map(|buffer| buffer.slice(..))
}
