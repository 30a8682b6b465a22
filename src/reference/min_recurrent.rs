//! The meaning of [`MinRecurrent`](crate::MinRecurrent): a sweep over time, and one function per cell.

use super::{Real, convert};
use crate::{Candidate, MinCell, MinRecurrentConfig, MinRecurrentShape};

/// One layer, as a `torch.nn.Linear` has it; an absent bias is empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights<R> {
    /// `[num_gates * hidden_size, input_size of the layer]`
    pub weight: Vec<R>,
    /// `[num_gates * hidden_size]`
    pub bias: Vec<R>,
}

impl Weights<f32> {
    /// The same numbers in another precision.
    pub fn convert<R: Real>(&self) -> Weights<R> {
        Weights {
            weight: convert(&self.weight),
            bias: convert(&self.bias),
        }
    }
}

/// The optional tensors: `h_0` `[num_layers, batch, hidden_size]`, `lengths` `[batch]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optional<'a, R> {
    /// Zeros if absent.
    pub h_0: Option<&'a [R]>,
    /// `seq_len` if absent.
    pub lengths: Option<&'a [u32]>,
}

/// `output` `[seq_len, batch, hidden_size]`, `h_n` like `h_0`.
#[derive(Debug, Clone, PartialEq)]
pub struct Output<R> {
    /// The last layer's states.
    pub output: Vec<R>,
    /// The state after each sequence's last step.
    pub h_n: Vec<R>,
}

/// Of everything that a forward pass reads, in its own shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients<R> {
    /// Like the input.
    pub input: Vec<R>,
    /// One entry per layer; the bias also where there was none.
    pub weights: Vec<Weights<R>>,
    /// Like `h_0`.
    pub h_0: Vec<R>,
}

/// The sizes of a layer, and the places of its sequences in the order in which they follow each other.
struct Layer {
    cell: MinCell,
    candidate: Candidate,
    width: usize,
    input_size: usize,
    batch: usize,
    places: Vec<(usize, usize)>,
}

impl Layer {
    fn new(
        config: &MinRecurrentConfig,
        shape: MinRecurrentShape,
        layer: usize,
        lengths: Option<&[u32]>,
    ) -> Self {
        let (seq_len, batch) = (shape.seq_len as usize, shape.batch as usize);
        let step = |step: usize| match config.reverse {
            true => seq_len - 1 - step,
            false => step,
        };
        let inside = |&(time, row): &(usize, usize)| {
            lengths.is_none_or(|lengths| time < lengths[row] as usize)
        };
        let places = (0..seq_len).flat_map(|at| (0..batch).map(move |row| (at, row)));
        Self {
            cell: config.cell,
            candidate: config.candidate,
            width: config.hidden_size as usize,
            input_size: match layer {
                0 => config.input_size as usize,
                _ => config.hidden_size as usize,
            },
            batch,
            places: places
                .map(|(at, row)| (step(at), row))
                .filter(inside)
                .collect(),
        }
    }

    /// `weight x + bias` of a token.
    fn gates<R: Real>(&self, weights: &Weights<R>, x: &[R]) -> Vec<R> {
        let rows = weights.weight.chunks_exact(self.input_size).enumerate();
        rows.map(|(row, weight)| {
            let products = weight.iter().zip(x).map(|(&w, &x)| w * x);
            let sum = products.fold(R::ZERO, |sum, product| sum + product);
            weights.bias.get(row).map_or(sum, |&bias| sum + bias)
        })
        .collect()
    }

    /// All states, and for each place the state before it.
    fn forward<R: Real>(
        &self,
        weights: &Weights<R>,
        input: &[R],
        h: &mut [R],
        len: usize,
    ) -> (Vec<R>, Vec<R>) {
        let mut output = vec![R::ZERO; len];
        let mut before = vec![R::ZERO; len];
        for &(time, row) in &self.places {
            let token = time * self.batch + row;
            let gates = self.gates(
                weights,
                &input[token * self.input_size..][..self.input_size],
            );
            for unit in 0..self.width {
                let h = &mut h[row * self.width + unit];
                before[token * self.width + unit] = *h;
                let step = self.step(&gates, unit);
                *h = step.keep * *h + step.take * step.n;
                output[token * self.width + unit] = *h;
            }
        }
        (output, before)
    }

    /// What the gates of a unit come to.
    fn step<R: Real>(&self, gates: &[R], unit: usize) -> Step<R> {
        let x = |gate: usize| gates[gate * self.width + unit];
        let last = x(self.cell.num_gates() as usize - 1);
        let (n, n_slope) = match self.candidate {
            Candidate::Linear => (last, R::ONE),
            Candidate::Positive if last >= R::ZERO => (last + R::from_f64(0.5), R::ONE),
            Candidate::Positive => (sigmoid(last), sigmoid(last) * sigmoid(-last)),
        };
        let (keep, take, slopes) = match self.cell {
            MinCell::Gru => {
                let (keep, take) = (sigmoid(-x(0)), sigmoid(x(0)));
                (keep, take, vec![-(keep * take)])
            }
            MinCell::Lstm => {
                // f / (f + i), also where both are as good as 0
                let more_i = closed(x(0)) - closed(x(1));
                let (keep, take) = (sigmoid(-more_i), sigmoid(more_i));
                let slope = |gate: usize| keep * take * sigmoid(-x(gate));
                (keep, take, vec![slope(0), -slope(1)])
            }
        };
        Step {
            keep,
            take,
            n,
            n_slope,
            slopes,
        }
    }
}

/// `keep` and `take`, the new value, and how these grow with the gates.
struct Step<R> {
    keep: R,
    take: R,
    n: R,
    n_slope: R,
    slopes: Vec<R>,
}

fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

/// `-log sigmoid(x)`
fn closed<R: Real>(x: R) -> R {
    (-x).max(R::ZERO) + (R::ONE + (-x.max(-x)).exp()).ln()
}

/// All layers.
pub fn min_recurrent<R: Real>(
    config: &MinRecurrentConfig,
    shape: MinRecurrentShape,
    input: &[R],
    weights: &[Weights<R>],
    optional: Optional<'_, R>,
) -> Output<R> {
    let states = shape.batch as usize * config.hidden_size as usize;
    let (mut layer_input, mut h_n) = (input.to_vec(), Vec::new());
    for (at, weights) in weights.iter().enumerate() {
        let layer = Layer::new(config, shape, at, optional.lengths);
        let mut h = initial(optional.h_0, at, states);
        let len = shape.seq_len as usize * states;
        layer_input = layer.forward(weights, &layer_input, &mut h, len).0;
        h_n.extend(h);
    }
    Output {
        output: layer_input,
        h_n,
    }
}

fn initial<R: Real>(h_0: Option<&[R]>, layer: usize, states: usize) -> Vec<R> {
    h_0.map_or_else(
        || vec![R::ZERO; states],
        |h_0| h_0[layer * states..][..states].to_vec(),
    )
}

/// What `grad_output` and `grad_h_n`, in the shapes of the outputs, come to.
pub fn min_recurrent_backward<R: Real>(
    config: &MinRecurrentConfig,
    shape: MinRecurrentShape,
    input: &[R],
    weights: &[Weights<R>],
    optional: Optional<'_, R>,
    grad_output: &[R],
    grad_h_n: &[R],
) -> Gradients<R> {
    let states = shape.batch as usize * config.hidden_size as usize;
    let len = shape.seq_len as usize * states;
    let layers: Vec<Layer> = (0..weights.len())
        .map(|at| Layer::new(config, shape, at, optional.lengths))
        .collect();
    let mut inputs = vec![input.to_vec()];
    let mut befores = Vec::new();
    for (at, (layer, weights)) in layers.iter().zip(weights).enumerate() {
        let mut h = initial(optional.h_0, at, states);
        let (output, before) = layer.forward(weights, &inputs[at], &mut h, len);
        inputs.push(output);
        befores.push(before);
    }
    let mut grad = grad_output.to_vec();
    let mut gradients = Gradients {
        input: Vec::new(),
        weights: Vec::new(),
        h_0: Vec::new(),
    };
    for (at, layer) in layers.iter().enumerate().rev() {
        let weights = &weights[at];
        let (width, size) = (layer.width, layer.input_size);
        let mut dh = grad_h_n[at * states..][..states].to_vec();
        let mut grad_input = vec![R::ZERO; inputs[at].len()];
        let rows = weights.weight.len() / size;
        let mut own = Weights {
            weight: vec![R::ZERO; weights.weight.len()],
            bias: vec![R::ZERO; rows],
        };
        for &(time, row) in layer.places.iter().rev() {
            let token = time * layer.batch + row;
            let x = &inputs[at][token * size..][..size];
            let gates = layer.gates(weights, x);
            let mut grad_gates = vec![R::ZERO; rows];
            for unit in 0..width {
                let step = layer.step(&gates, unit);
                let dh = &mut dh[row * width + unit];
                *dh += grad[token * width + unit];
                let difference = befores[at][token * width + unit] - step.n;
                for (gate, &slope) in step.slopes.iter().enumerate() {
                    grad_gates[gate * width + unit] = *dh * difference * slope;
                }
                grad_gates[step.slopes.len() * width + unit] = *dh * step.take * step.n_slope;
                *dh = step.keep * *dh;
            }
            for (row, &grad) in grad_gates.iter().enumerate() {
                own.bias[row] += grad;
                for (column, &x) in x.iter().enumerate() {
                    own.weight[row * size + column] += grad * x;
                    grad_input[token * size + column] += grad * weights.weight[row * size + column];
                }
            }
        }
        gradients.weights.insert(0, own);
        gradients.h_0.splice(0..0, dh);
        grad = grad_input;
    }
    gradients.input = grad;
    gradients
}
