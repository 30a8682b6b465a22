//! The meaning of [`Recurrent`](crate::Recurrent): a sweep over time, and one function per cell.

mod backward;
mod self_check;

pub use self_check::{Mistake, SelfCheck, self_check};

pub use backward::{Gradients, Upstream, recurrent_backward};

use super::{Real, convert};
use crate::philox::{philox, threshold};
use crate::{Activation, Activations, Cell, Direction};

/// The numbers of a problem.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    /// The cell of all layers.
    pub cell: Cell,
    /// Length of an input vector.
    pub input_size: usize,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Length of the hidden state after its projection, if it has one; see [`Weights::weight_hr`].
    pub proj_size: Option<usize>,
    /// Layers.
    pub num_layers: usize,
    /// The direction of all layers.
    pub direction: Direction,
    /// Probability that an element of the output of a layer but the last is dropped; see
    /// [`RecurrentConfig::dropout`](crate::RecurrentConfig::dropout).
    pub dropout: f32,
    /// Of the dropout.
    pub seed: u64,
    /// Of each direction; if absent, [`Cell::activations`].
    pub activations: Option<[Activations; 2]>,
    /// Bounds what goes into the activations.
    pub clip: Option<f32>,
    /// [`RecurrentConfig::truncate`](crate::RecurrentConfig::truncate); the forward pass knows nothing of it.
    pub truncate: Option<usize>,
    /// Steps.
    pub seq_len: usize,
    /// Independent sequences.
    pub batch: usize,
}

impl Problem {
    /// Length of a hidden state as it is handed on: `proj_size`, or `hidden_size`.
    pub fn state_size(&self) -> usize {
        self.proj_size.unwrap_or(self.hidden_size)
    }

    /// What dropout multiplies an element of a layer's output with on its way to the next layer: 0, or
    /// `1 / (1 - dropout)`.
    pub fn dropout_factor<R: Real>(&self, layer: usize, element: usize) -> R {
        let counter = (element / 4) as u64;
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let words = philox(
            [counter as u32, layer as u32, (counter >> 32) as u32, 0],
            key,
        );
        match words[element % 4] >= threshold(self.dropout) {
            true => R::ONE / (R::ONE - R::from_f64(self.dropout.into())),
            false => R::ZERO,
        }
    }
}

/// One direction of one layer, in PyTorch's layout; absent biases, peepholes and projections are empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights<R> {
    /// `[num_gates * hidden_size, input_size of the layer]`
    pub weight_ih: Vec<R>,
    /// `[num_gates * hidden_size, state_size]`
    pub weight_hh: Vec<R>,
    /// `[num_gates * hidden_size]`
    pub bias_ih: Vec<R>,
    /// `[num_gates * hidden_size]`
    pub bias_hh: Vec<R>,
    /// Of an LSTM, `[3 * hidden_size]` in the order i, f, o, or empty: weights of the cell state in the gates.
    pub peephole: Vec<R>,
    /// Of an LSTM with a projection, `[proj_size, hidden_size]`: `h = weight_hr (o tanh(c))`.
    pub weight_hr: Vec<R>,
}

impl Weights<f32> {
    /// The same numbers in another precision.
    pub fn convert<R: Real>(&self) -> Weights<R> {
        Weights {
            weight_ih: convert(&self.weight_ih),
            weight_hh: convert(&self.weight_hh),
            bias_ih: convert(&self.bias_ih),
            bias_hh: convert(&self.bias_hh),
            peephole: convert(&self.peephole),
            weight_hr: convert(&self.weight_hr),
        }
    }
}

/// The optional tensors: `h_0` `[num_layers * num_directions, batch, state_size]`, `c_0` the same with
/// `hidden_size`, `lengths` `[batch]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Initial<'a, R> {
    /// Zeros if absent.
    pub h_0: Option<&'a [R]>,
    /// Zeros if absent.
    pub c_0: Option<&'a [R]>,
    /// `seq_len` if absent.
    pub lengths: Option<&'a [u32]>,
}

/// `output` `[seq_len, batch, num_directions * state_size]`, `h_n` and `c_n` like `h_0` and `c_0`.
#[derive(Debug, Clone, PartialEq)]
pub struct Output<R> {
    /// The last layer's hidden states.
    pub output: Vec<R>,
    /// The hidden state after each sequence's last step.
    pub h_n: Vec<R>,
    /// The cell state after each sequence's last step; empty but for an LSTM.
    pub c_n: Vec<R>,
}

/// All layers; `weights[layer * num_directions + direction]`.
pub fn recurrent<R: Real>(
    problem: &Problem,
    input: &[R],
    weights: &[Weights<R>],
    initial: Initial<'_, R>,
) -> Output<R> {
    let Problem {
        cell,
        hidden_size,
        seq_len,
        batch,
        ..
    } = *problem;
    let directions = problem.direction.count() as usize;
    let width = problem.state_size();
    let mut layer_input = input.to_vec();
    let (mut h_n, mut c_n) = (Vec::new(), Vec::new());
    for layer in 0..problem.num_layers {
        let mut output = vec![R::ZERO; seq_len * batch * directions * width];
        for direction in 0..directions {
            let at = layer * directions + direction;
            let take = |x: Option<&[R]>, len: usize| match x {
                Some(x) => x[at * len..][..len].to_vec(),
                None => vec![R::ZERO; len],
            };
            let mut h = take(initial.h_0, batch * width);
            let mut c = take(initial.c_0, batch * hidden_size);
            let input_size = layer_input.len() / (seq_len * batch).max(1);
            for step in 0..seq_len {
                let reverse = direction == 1 || problem.direction == Direction::Reverse;
                let time = if reverse { seq_len - 1 - step } else { step };
                for row in 0..batch {
                    if initial
                        .lengths
                        .is_some_and(|lengths| time >= lengths[row] as usize)
                    {
                        continue;
                    }
                    let x = &layer_input[(time * batch + row) * input_size..][..input_size];
                    let h = &mut h[row * width..][..width];
                    let c = &mut c[row * hidden_size..][..hidden_size];
                    one_step(problem, direction, &weights[at], x, h, c);
                    let token = (time * batch + row) * directions + direction;
                    output[token * width..][..width].copy_from_slice(h);
                }
            }
            h_n.extend(h);
            if cell.has_cell_state() {
                c_n.extend(c);
            }
        }
        if problem.dropout > 0.0 && layer + 1 < problem.num_layers {
            for (element, x) in output.iter_mut().enumerate() {
                let factor = problem.dropout_factor(layer, element);
                *x = if factor == R::ZERO {
                    R::ZERO
                } else {
                    *x * factor
                };
            }
        }
        layer_input = output;
    }
    Output {
        output: layer_input,
        h_n,
        c_n,
    }
}

/// `h` and `c` of one row, from one step to the next.
fn one_step<R: Real>(
    problem: &Problem,
    direction: usize,
    weights: &Weights<R>,
    x: &[R],
    h: &mut [R],
    c: &mut [R],
) {
    let hidden_size = problem.hidden_size;
    let gates_x = affine(&weights.weight_ih, x, &weights.bias_ih);
    let mut gates_h = affine(&weights.weight_hh, h, &weights.bias_hh);
    let functions = problem
        .activations
        .map_or(problem.cell.activations(), |all| all[direction]);
    let clip = problem.clip.map_or(f64::INFINITY, f64::from);
    let clip = |x: R| x.max(R::from_f64(-clip)).min(R::from_f64(clip));
    let gate = |x: R| activation(functions.gate, clip(x));
    let candidate = |x: R| activation(functions.candidate, clip(x));
    if problem.cell == Cell::GruResetBefore {
        // n is a product with r h
        let reset = |unit: usize| gate(gates_x[unit] + gates_h[unit]) * h[unit];
        let reset_h: Vec<R> = (0..hidden_size).map(reset).collect();
        let again = affine(&weights.weight_hh, &reset_h, &weights.bias_hh);
        gates_h[2 * hidden_size..].copy_from_slice(&again[2 * hidden_size..]);
    }
    let mut unprojected = vec![R::ZERO; hidden_size];
    for unit in 0..hidden_size {
        let x = |gate: usize| gates_x[gate * hidden_size + unit];
        let r = |gate: usize| gates_h[gate * hidden_size + unit];
        let sum = |gate: usize| x(gate) + r(gate);
        match problem.cell {
            Cell::RnnTanh | Cell::RnnRelu => h[unit] = candidate(sum(0)),
            Cell::Lstm | Cell::LstmCoupled => {
                let coupled = problem.cell == Cell::LstmCoupled;
                let look = |which: usize, c: R| {
                    let weight = weights.peephole.get(which * hidden_size + unit);
                    weight.map_or(R::ZERO, |&weight| weight * c)
                };
                let i = gate(sum(0) + look(0, c[unit]));
                let f = if coupled {
                    R::ONE - i
                } else {
                    gate(sum(1) + look(1, c[unit]))
                };
                c[unit] = f * c[unit] + i * candidate(sum(2));
                let o = gate(sum(3) + look(2, c[unit]));
                unprojected[unit] = o * activation(functions.output, c[unit]);
                if problem.proj_size.is_none() {
                    h[unit] = unprojected[unit];
                }
            }
            Cell::Gru => {
                let (reset, z) = (gate(sum(0)), gate(sum(1)));
                let n = candidate(x(2) + reset * r(2));
                h[unit] = (R::ONE - z) * n + z * h[unit];
            }
            Cell::GruResetBefore => {
                let (z, n) = (gate(sum(1)), candidate(sum(2)));
                h[unit] = (R::ONE - z) * n + z * h[unit];
            }
        }
    }
    if problem.proj_size.is_some() {
        h.copy_from_slice(&affine(&weights.weight_hr, &unprojected, &[]));
    }
}

fn activation<R: Real>(activation: Activation, x: R) -> R {
    let number = |value: f64| R::from_f64(value);
    match activation {
        Activation::Sigmoid => R::ONE / (R::ONE + (-x).exp()),
        Activation::Tanh | Activation::ScaledTanh => x.tanh(),
        Activation::Relu => x.max(R::ZERO),
        Activation::Affine => x,
        Activation::LeakyRelu if x < R::ZERO => number(0.01) * x,
        Activation::ThresholdedRelu if x <= R::ONE => R::ZERO,
        Activation::HardSigmoid => {
            let line = number(0.2) * x + number(0.5);
            line.max(R::ZERO).min(R::ONE)
        }
        Activation::Elu if x < R::ZERO => x.exp_m1(),
        Activation::LeakyRelu | Activation::ThresholdedRelu | Activation::Elu => x,
        Activation::Softsign => x / (R::ONE + x.max(-x)),
        Activation::Softplus => x.max(R::ZERO) + (-x.max(-x)).exp().ln_1p(),
    }
}

/// `weight x + bias`
fn affine<R: Real>(weight: &[R], x: &[R], bias: &[R]) -> Vec<R> {
    let rows = weight.chunks_exact(x.len()).enumerate();
    rows.map(|(row, weight)| {
        let products = weight.iter().zip(x).map(|(&w, &x)| w * x);
        let sum = products.fold(R::ZERO, |sum, product| sum + product);
        bias.get(row).map_or(sum, |&bias| sum + bias)
    })
    .collect()
}
