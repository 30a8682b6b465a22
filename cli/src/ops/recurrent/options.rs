//! The flags of RNN, LSTM and GRU, and the grid of `bench`.

use clap::{Args, ValueEnum};

use gatefold::{Capabilities, Cell, RecurrentConfig};

use super::Recurrent;
use crate::args::finite;
use crate::args::list::{List, product, values};
use crate::error::{Error, Result};
use crate::ops::Problem;

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
    #[arg(long)]
    pub bidirectional: bool,
    #[arg(long, value_enum, default_value_t)]
    pub nonlinearity: Nonlinearity,
    /// Force a way to carry the state from step to step
    #[arg(long, value_enum)]
    pub tier: Option<Tier>,
}

/// Which operation, before its tensors are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Rnn,
    Lstm,
    Gru,
}

impl TryFrom<Tier> for gatefold::Tier {
    type Error = Error;

    fn try_from(tier: Tier) -> Result<Self> {
        match tier {
            Tier::Stepped => Ok(Self::Stepped),
            Tier::Resident => Ok(Self::Resident),
            Tier::Persistent => Err(Error::not_yet("--tier persistent")),
        }
    }
}

pub fn grid(kind: Kind, options: &BenchOptions) -> Result<Vec<Box<dyn Problem>>> {
    let cell = match (kind, options.nonlinearity) {
        (Kind::Rnn, Nonlinearity::Tanh) => Cell::RnnTanh,
        (Kind::Rnn, Nonlinearity::Relu) => Cell::RnnRelu,
        (_, Nonlinearity::Relu) => return Err(Error::usage("--nonlinearity is for rnn")),
        (Kind::Lstm, _) => Cell::Lstm,
        (Kind::Gru, _) => Cell::Gru,
    };
    let given = [
        ("--batch", &options.batch, 1),
        ("--seq-len", &options.seq_len, 64),
        ("--input-size", &options.input_size, 256),
        ("--hidden-size", &options.hidden_size, 256),
        ("--layers", &options.layers, 1),
    ];
    let mut axes = Vec::new();
    for (flag, lists, default) in given {
        let axis = values(lists).unwrap_or_else(|| vec![default]);
        if axis.contains(&0) {
            return Err(Error::usage(format_args!(
                "{flag} is 0, expected at least 1"
            )));
        }
        axes.push(axis);
    }
    let tier = options.tier.map(TryInto::try_into).transpose()?;
    let problem = |row: Vec<u32>| -> Result<Box<dyn Problem>> {
        let config = RecurrentConfig {
            cell,
            input_size: row[2],
            hidden_size: row[3],
            num_layers: row[4],
            direction: match options.bidirectional {
                true => gatefold::Direction::Bidirectional,
                false => gatefold::Direction::Forward,
            },
            tier,
            ..Default::default()
        };
        let problem = Recurrent::new(config, row[1], row[0]);
        // a shape that no device can run is a mistake of the command line
        match problem.plan(&Capabilities::floor(), None) {
            Err(error @ gatefold::Error::Shape { .. }) => Err(error.into()),
            _ => Ok(Box::new(problem)),
        }
    };
    product(&axes).into_iter().map(problem).collect()
}
