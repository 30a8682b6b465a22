//! The flags of the three operations, and what they say about the cell.

use clap::{Args, ValueEnum};
use gatefold::{Activation, Activations, Cell, RecurrentConfig, Tier};

use super::Op;
use crate::args::list::List;
use crate::args::{RunCommon, probability};
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
    /// Probability that an element is dropped on its way from a layer to the next
    #[arg(long, value_parser = probability)]
    pub dropout: Option<f32>,
    /// Seed of the dropout
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
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
    /// With --grad: keep the states of every K-th step only, and run the steps in between again
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub checkpoint_every: Option<u32>,
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
        Some(TierName::Persistent) => Ok(Some(Tier::Persistent)),
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
    /// Of an lstm: length of a hidden state after its projection
    #[arg(long)]
    pub proj_size: Vec<List>,
    /// [default: 1]
    #[arg(long)]
    pub layers: Vec<List>,
    /// Both directions, joined
    #[arg(long)]
    pub bidirectional: bool,
    /// Input and output are [batch, seq_len, ...]
    #[arg(long)]
    pub batch_first: bool,
    /// Of an rnn [default: tanh]
    #[arg(long, value_enum)]
    pub nonlinearity: Option<Nonlinearity>,
    /// Force a way to carry the state from step to step
    #[arg(long, value_enum)]
    pub tier: Option<TierName>,
    /// With --grad: keep the states of every K-th step only, and run the steps in between again
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub checkpoint_every: Option<u32>,
}

/// The cell, the clip and the tier that the flags of `run` ask for; sizes and direction are left as they are.
/// A GRU without the flag is `reset_after` the product, or before.
pub fn config(
    op: Op,
    common: &RunCommon,
    options: &RunOptions,
    reset_after: bool,
) -> Result<RecurrentConfig> {
    let checkpoint_every = checkpoints(common.grad, options.checkpoint_every)?;
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
    let flag = options.linear_before_reset;
    let reset_after = flag.map_or(reset_after, |flag| flag == 1);
    let cell = match cell(op, options.nonlinearity)? {
        Cell::Gru if !reset_after => Cell::GruResetBefore,
        Cell::Lstm if options.input_forget => Cell::LstmCoupled,
        cell => cell,
    };
    Ok(RecurrentConfig {
        cell,
        activations: activations(op, cell, options)?,
        dropout: options.dropout.unwrap_or(0.0),
        clip: options.clip,
        checkpoint_every,
        gradients: common.grad,
        tier: tier(options.tier)?,
        ..Default::default()
    })
}

/// Where the backward pass runs steps again, if there is one.
pub fn checkpoints(grad: bool, every: Option<u32>) -> Result<Option<u32>> {
    match every {
        Some(_) if !grad => Err(Error::usage("--checkpoint-every: is for --grad")),
        every => Ok(every),
    }
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

/// The functions of each direction, if they are others than the cell's own.
fn activations(op: Op, cell: Cell, options: &RunOptions) -> Result<Option<[Activations; 2]>> {
    let Some(names) = &options.activations else {
        return Ok(None);
    };
    if options.nonlinearity.is_some() {
        return Err(Error::usage(
            "--activations and --nonlinearity say the same",
        ));
    }
    let mut all = Vec::new();
    for name in names {
        let same = |activation: &Activation| activation.name().eq_ignore_ascii_case(name);
        let Some(activation) = Activation::ALL.into_iter().find(same) else {
            let known = Activation::ALL.map(Activation::name).join(", ");
            return Err(Error::usage(format_args!(
                "--activations: no {name}; there are {known}"
            )));
        };
        all.push(activation);
    }
    let each = match op {
        Op::Rnn => 1,
        Op::Lstm => 3,
        Op::Gru => 2,
    };
    let directions = match options.direction {
        Some(Direction::Bidirectional) => 2,
        _ => 1,
    };
    if all.len() != each * directions {
        return Err(Error::usage(format_args!(
            "--activations: {} names, expected {}",
            all.len(),
            each * directions
        )));
    }
    let own = cell.activations();
    let of = |direction: usize| match all[direction * each..][..each] {
        [candidate] => Activations { candidate, ..own },
        [gate, candidate] => Activations {
            gate,
            candidate,
            ..own
        },
        [gate, candidate, output] => Activations {
            gate,
            candidate,
            output,
        },
        _ => own,
    };
    let found = [of(0), of(directions - 1)];
    Ok((found != [own; 2]).then_some(found))
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number above 0".into()),
    }
}
