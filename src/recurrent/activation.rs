use super::{Cell, RecurrentConfig};

/// A function of one number, under ONNX's name and with ONNX's default parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `tanh(x)`
    Tanh,
    /// `max(x, 0)`
    Relu,
    /// `x`
    Affine,
    /// `x`, or `0.01 x` below 0
    LeakyRelu,
    /// `x`, or 0 up to 1
    ThresholdedRelu,
    /// `tanh(x)`
    ScaledTanh,
    /// `0.2 x + 0.5` within 0 and 1
    HardSigmoid,
    /// `x`, or `exp(x) - 1` below 0
    Elu,
    /// `x / (1 + |x|)`
    Softsign,
    /// `ln(1 + exp(x))`
    Softplus,
}

impl Activation {
    /// All of them, in the order of their numbers in `recurrent_activations_named.wgsl`.
    pub const ALL: [Self; 11] = [
        Self::Sigmoid,
        Self::Tanh,
        Self::Relu,
        Self::Affine,
        Self::LeakyRelu,
        Self::ThresholdedRelu,
        Self::ScaledTanh,
        Self::HardSigmoid,
        Self::Elu,
        Self::Softsign,
        Self::Softplus,
    ];

    /// ONNX's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "Sigmoid",
            Self::Tanh => "Tanh",
            Self::Relu => "Relu",
            Self::Affine => "Affine",
            Self::LeakyRelu => "LeakyRelu",
            Self::ThresholdedRelu => "ThresholdedRelu",
            Self::ScaledTanh => "ScaledTanh",
            Self::HardSigmoid => "HardSigmoid",
            Self::Elu => "Elu",
            Self::Softsign => "Softsign",
            Self::Softplus => "Softplus",
        }
    }
}

/// The functions of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Activations {
    /// Of the gates: ONNX's f of an LSTM and a GRU. An RNN has none.
    pub gate: Activation,
    /// Of what the gates let through: ONNX's g of an LSTM and a GRU, f of an RNN.
    pub candidate: Activation,
    /// Of the cell state on its way out: ONNX's h of an LSTM.
    pub output: Activation,
}

impl Cell {
    /// Those that a cell has unless others are asked for.
    pub fn activations(self) -> Activations {
        Activations {
            gate: Activation::Sigmoid,
            candidate: match self {
                Self::RnnRelu => Activation::Relu,
                _ => Activation::Tanh,
            },
            output: Activation::Tanh,
        }
    }
}

impl RecurrentConfig {
    /// Four bits for each function of each direction, as the kernel takes them apart.
    pub(super) fn activation_bits(&self) -> u32 {
        let each = self.activations.unwrap_or([self.cell.activations(); 2]);
        let all = each.iter().flat_map(|functions| {
            let Activations {
                gate,
                candidate,
                output,
            } = *functions;
            [gate, candidate, output]
        });
        // the first one in the lowest bits
        let add = |bits, activation| bits << 4 | activation as u32;
        all.rev().fold(0, add)
    }
}
