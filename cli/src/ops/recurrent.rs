//! RNN, LSTM and GRU: their flags, for now.

use clap::{Args, ValueEnum};

use super::Problem;
use crate::args::finite;
use crate::args::list::List;
use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub struct RunOptions {
    /// Input and output are [batch, seq_len, ...]
    #[arg(long)]
    pub batch_first: bool,
    #[arg(long, value_enum, default_value_t)]
    pub nonlinearity: Nonlinearity,
    /// Whose names and layouts the tensors have
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Bound the inputs of the activations (ONNX)
    #[arg(long, value_parser = finite)]
    pub clip: Option<f32>,
    /// Couple the forget gate to the input gate (ONNX)
    #[arg(long)]
    pub input_forget: bool,
    /// Whether the GRU's reset gate acts after the recurrent product (ONNX)
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub linear_before_reset: Option<u8>,
    /// Activations of the gates, per direction (ONNX)
    #[arg(long, value_delimiter = ',')]
    pub activations: Option<Vec<String>>,
    /// Direction (ONNX)
    #[arg(long, value_enum)]
    pub direction: Option<Direction>,
    /// Force a way to carry the state from step to step
    #[arg(long, value_enum)]
    pub tier: Option<Tier>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Nonlinearity {
    #[default]
    Tanh,
    Relu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    #[default]
    Pytorch,
    Onnx,
    Keras,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    Forward,
    Reverse,
    Bidirectional,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    Stepped,
    Resident,
    Persistent,
}

#[derive(Debug, Args)]
pub struct BenchOptions {
    #[arg(long)]
    pub batch: Vec<List>,
    #[arg(long)]
    pub seq_len: Vec<List>,
    #[arg(long)]
    pub input_size: Vec<List>,
    #[arg(long)]
    pub hidden_size: Vec<List>,
    #[arg(long)]
    pub layers: Vec<List>,
    #[arg(long)]
    pub bidirectional: bool,
    #[arg(long, value_enum, default_value_t)]
    pub nonlinearity: Nonlinearity,
    /// Force a way to carry the state from step to step
    #[arg(long, value_enum)]
    pub tier: Option<Tier>,
}

pub fn from_tensors(op: &'static str, _options: &RunOptions) -> Result<Box<dyn Problem>> {
    Err(Error::not_yet(op))
}

pub fn grid(op: &'static str, _options: &BenchOptions) -> Result<Vec<Box<dyn Problem>>> {
    Err(Error::not_yet(op))
}
