//! The operations, as the commands see them: each is a set of flags and a [`Problem`].
//!
//! A new operation is a file in `ops/`, an arm in the two enums of flags and in the three functions below.

pub mod additive;
pub mod attention;
mod launch;
mod random;
pub mod recurrent;

use clap::{Args, Subcommand};
use gatefold::kernel::Operand;
use gatefold::reference::compare::Difference;
use gatefold::{Capabilities, ElementType, Gpu, Plan, Variant};
use serde_json::Value;

use crate::args::{BenchCommon, RunCommon};
use crate::error::Result;
use crate::tensors::Tensors;

pub use launch::{Launch, Output};
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

    /// The worst error of an element relative to its row, or the element that is wrong. A problem too
    /// large for the reference is checked in a sample of its rows.
    fn check(&self, inputs: &Tensors, got: &Tensors) -> Result<Result<f64, Box<Difference>>>;
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
}

impl RunOp {
    pub fn common(&self) -> &RunCommon {
        match self {
            Self::Attention(op) => &op.common,
            Self::AdditiveAttention(op) => &op.common,
            Self::Rnn(op) | Self::Lstm(op) | Self::Gru(op) => &op.common,
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
}

impl BenchOp {
    pub fn common(&self) -> &BenchCommon {
        match self {
            Self::Attention(op) => &op.common,
            Self::AdditiveAttention(op) => &op.common,
            Self::Rnn(op) | Self::Lstm(op) | Self::Gru(op) => &op.common,
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
    cases
}

/// Shapes of every day, for `info` to say what they run with.
pub fn showcase() -> Vec<Box<dyn Problem>> {
    let mut problems = attention::showcase();
    problems.extend(additive::showcase());
    problems.extend(recurrent::showcase());
    problems
}
