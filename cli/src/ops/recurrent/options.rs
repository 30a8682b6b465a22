//! The flags of the three operations, and what they say about the cell.

use clap::{Args, ValueEnum};
use gatefold::{Cell, RecurrentConfig, Tier};

use super::Op;
use crate::args::RunCommon;
use crate::args::list::List;
use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub struct RunOptions {
    /// Input and output are [batch, seq_len, ...]; with ONNX layout 1, the states too
    #[arg(long)]
    pub batch_first: bool,
    /// Of an rnn [default: tanh]
    #[arg(long, value_enum)]
    pub nonlinearity: Option<Nonlinearity>,
    /// Whose names and layouts the tensors have
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Bound the inputs of the activations (ONNX)
    #[arg(long, value_parser = positive)]
    pub clip: Option<f32>,
    /// Couple the forget gate to the input gate (ONNX)
    #[arg(long)]
    pub input_forget: bool,
    /// Whether the GRU's reset gate acts after the recurrent product (ONNX) [default: 0 in ONNX, as the bias
    /// says in Keras, 1 in PyTorch]
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub linear_before_reset: Option<u8>,
    /// Activations of the gates, per direction (ONNX)
    #[arg(long, value_delimiter = ',')]
    pub activations: Option<Vec<String>>,
    /// Direction (ONNX) [default: forward]
    #[arg(long, value_enum)]
    pub direction: Option<Direction>,
    /// Force a way to carry the state from step to step
    #[arg(long, value_enum)]
    pub tier: Option<TierName>,
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

impl Direction {
    pub fn of_library(self) -> gatefold::Direction {
        match self {
            Self::Forward => gatefold::Direction::Forward,
            Self::Reverse => gatefold::Direction::Reverse,
            Self::Bidirectional => gatefold::Direction::Bidirectional,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TierName {
    Stepped,
    Resident,
    Persistent,
}

/// The library's tier, if one is forced.
pub fn tier(name: Option<TierName>) -> Result<Option<Tier>> {
    match name {
        None => Ok(None),
        Some(TierName::Stepped) => Ok(Some(Tier::Stepped)),
        Some(TierName::Resident) => Ok(Some(Tier::Resident)),
        Some(TierName::Persistent) => Err(Error::not_yet("--tier persistent")),
    }
}

#[derive(Debug, Args)]
pub struct BenchOptions {
    /// [default: 1]
    #[arg(long)]
    pub batch: Vec<List>,
    /// [default: 64]
    #[arg(long)]
    pub seq_len: Vec<List>,
    /// [default: 256]
    #[arg(long)]
    pub input_size: Vec<List>,
    /// [default: 256]
    #[arg(long)]
    pub hidden_size: Vec<List>,
    /// [default: 1]
    #[arg(long)]
    pub layers: Vec<List>,
    /// Both directions, joined
    #[arg(long)]
    pub bidirectional: bool,
    /// Of an rnn [default: tanh]
    #[arg(long, value_enum)]
    pub nonlinearity: Option<Nonlinearity>,
    /// Force a way to carry the state from step to step
    #[arg(long, value_enum)]
    pub tier: Option<TierName>,
}

/// The cell, the clip and the tier that the flags of `run` ask for; sizes and direction are left as they are.
pub fn config(op: Op, common: &RunCommon, options: &RunOptions) -> Result<RecurrentConfig> {
    if common.grad {
        return Err(Error::not_yet("--grad"));
    }
    if options.direction.is_some() && options.format != Format::Onnx {
        return Err(Error::usage(
            "--direction is for --format onnx; PyTorch's names say it themselves",
        ));
    }
    if options.input_forget && op != Op::Lstm {
        return Err(Error::usage("--input-forget: only an lstm has that gate"));
    }
    if options.linear_before_reset.is_some() && op != Op::Gru {
        return Err(Error::usage(
            "--linear-before-reset: only a gru has that gate",
        ));
    }
    if options.input_forget {
        return Err(Error::not_yet("--input-forget"));
    }
    activations(op, options)?;
    Ok(RecurrentConfig {
        cell: cell(op, options.nonlinearity)?,
        clip: options.clip,
        tier: tier(options.tier)?,
        ..Default::default()
    })
}

pub fn cell(op: Op, nonlinearity: Option<Nonlinearity>) -> Result<Cell> {
    match (op, nonlinearity) {
        (Op::Rnn, None | Some(Nonlinearity::Tanh)) => Ok(Cell::RnnTanh),
        (Op::Rnn, Some(Nonlinearity::Relu)) => Ok(Cell::RnnRelu),
        (Op::Lstm, None) => Ok(Cell::Lstm),
        (Op::Gru, None) => Ok(Cell::Gru),
        (_, Some(_)) => Err(Error::usage("--nonlinearity: only an rnn has one")),
    }
}

/// ONNX's names; those that a kernel has are the defaults.
const ACTIVATIONS: [&str; 11] = [
    "Relu",
    "Tanh",
    "Sigmoid",
    "Affine",
    "LeakyRelu",
    "ThresholdedRelu",
    "ScaledTanh",
    "HardSigmoid",
    "Elu",
    "Softsign",
    "Softplus",
];

fn activations(op: Op, options: &RunOptions) -> Result<()> {
    let Some(names) = &options.activations else {
        return Ok(());
    };
    for name in names {
        if !ACTIVATIONS.contains(&name.as_str()) {
            let known = ACTIVATIONS.join(", ");
            return Err(Error::usage(format_args!(
                "--activations: no {name}; there are {known}"
            )));
        }
    }
    let defaults: &[&str] = match op {
        Op::Rnn => &["Tanh"],
        Op::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        Op::Gru => &["Sigmoid", "Tanh"],
    };
    let directions = match options.direction {
        Some(Direction::Bidirectional) => 2,
        _ => 1,
    };
    let expected = defaults.len() * directions;
    if names.len() != expected {
        return Err(Error::usage(format_args!(
            "--activations: {} names, expected {expected}",
            names.len()
        )));
    }
    if names.iter().ne(defaults.repeat(directions)) {
        return Err(Error::not_yet(format_args!(
            "--activations {}",
            names.join(",")
        )));
    }
    Ok(())
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number above 0".into()),
    }
}
