//! The gradients of [`recurrent`](super::recurrent): the same sweep, the other way round.

use super::{Initial, Problem, Weights, activation, affine, one_step};
use crate::reference::Real;
use crate::{Activation, Activations, Cell, Direction};

/// The gradients that arrive, each shaped like the output it belongs to; zeros if absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upstream<'a, R> {
    /// Of `output`.
    pub output: Option<&'a [R]>,
    /// Of `h_n`.
    pub h_n: Option<&'a [R]>,
    /// Of `c_n`.
    pub c_n: Option<&'a [R]>,
}

/// The gradients of everything that went in, each in the shape of its input.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients<R> {
    /// Of `input`.
    pub input: Vec<R>,
    /// Of the parameters; empty where the parameter is.
    pub weights: Vec<Weights<R>>,
    /// Of `h_0`, given or not.
    pub h_0: Vec<R>,
    /// Of `c_0`, given or not; empty but for an LSTM.
    pub c_0: Vec<R>,
    /// `[num_layers * num_directions, seq_len]`: the norm, over the batch and the units, of the whole gradient that
    /// reaches a hidden state; a sequence counts up to its own length.
    pub norms: Vec<R>,
}

impl<R: Real> Gradients<R> {
    fn zeros(problem: &Problem, weights: &[Weights<R>]) -> Self {
        let zeros = |like: &[R]| vec![R::ZERO; like.len()];
        let states = weights.len() * problem.batch;
        Self {
            input: Vec::new(),
            weights: weights
                .iter()
                .map(|weights| Weights {
                    weight_ih: zeros(&weights.weight_ih),
                    weight_hh: zeros(&weights.weight_hh),
                    bias_ih: zeros(&weights.bias_ih),
                    bias_hh: zeros(&weights.bias_hh),
                    peephole: zeros(&weights.peephole),
                    weight_hr: zeros(&weights.weight_hr),
                })
                .collect(),
            h_0: vec![R::ZERO; states * problem.state_size()],
            c_0: match problem.cell.has_cell_state() {
                true => vec![R::ZERO; states * problem.hidden_size],
                false => Vec::new(),
            },
            norms: vec![R::ZERO; weights.len() * problem.seq_len],
        }
    }
}

/// The gradients, and for each the same last sum taken over absolute values: the scale on which a sum that
/// cancels can be exact.
///
/// Where `clip` bounds what goes into an activation, the gradient is 0 outside the bounds.
pub fn recurrent_backward<R: Real>(
    problem: &Problem,
    input: &[R],
    weights: &[Weights<R>],
    initial: Initial<'_, R>,
    upstream: Upstream<'_, R>,
) -> [Gradients<R>; 2] {
    let directions = problem.direction.count() as usize;
    let layers = layer_inputs(problem, input, weights, initial);
    let mut results = [(); 2].map(|()| Gradients::zeros(problem, weights));
    let width = directions * problem.state_size();
    let none = || vec![R::ZERO; problem.seq_len * problem.batch * width];
    let mut grad_output = upstream.output.map_or_else(none, <[R]>::to_vec);
    for layer in (0..problem.num_layers).rev() {
        let input = &layers[layer];
        let mut grad_input = [(); 2].map(|()| vec![R::ZERO; input.len()]);
        for direction in 0..directions {
            let sweep = Sweep {
                problem,
                direction,
                at: layer * directions + direction,
                weights: &weights[layer * directions + direction],
                input,
            };
            for row in 0..problem.batch {
                let tape = sweep.tape(row, initial);
                sweep.row(
                    row,
                    &tape,
                    &grad_output,
                    upstream,
                    &mut grad_input,
                    &mut results,
                );
            }
        }
        let [value, magnitude] = grad_input;
        results[0].input = value.clone();
        results[1].input = magnitude;
        grad_output = value;
        if layer > 0 && problem.dropout > 0.0 {
            for (element, gradient) in grad_output.iter_mut().enumerate() {
                *gradient = *gradient * problem.dropout_factor(layer - 1, element);
            }
        }
    }
    for result in &mut results {
        for norm in &mut result.norms {
            *norm = R::from_f64(norm.to_f64().sqrt());
        }
    }
    results
}

/// What each layer reads.
fn layer_inputs<R: Real>(
    problem: &Problem,
    input: &[R],
    weights: &[Weights<R>],
    initial: Initial<'_, R>,
) -> Vec<Vec<R>> {
    let directions = problem.direction.count() as usize;
    let mut layers = vec![input.to_vec()];
    for layer in 1..problem.num_layers {
        let first = Problem {
            num_layers: layer,
            ..*problem
        };
        let states = layer * directions * problem.batch;
        let initial = Initial {
            h_0: initial.h_0.map(|h_0| &h_0[..states * problem.state_size()]),
            c_0: initial.c_0.map(|c_0| &c_0[..states * problem.hidden_size]),
            ..initial
        };
        let weights = &weights[..layer * directions];
        let mut output = super::recurrent(&first, input, weights, initial).output;
        if problem.dropout > 0.0 {
            for (element, value) in output.iter_mut().enumerate() {
                *value = *value * problem.dropout_factor(layer - 1, element);
            }
        }
        layers.push(output);
    }
    layers
}

/// One direction of one layer.
struct Sweep<'a, R> {
    problem: &'a Problem,
    direction: usize,
    /// `layer * num_directions + direction`
    at: usize,
    weights: &'a Weights<R>,
    /// of the layer
    input: &'a [R],
}

/// The time of a step, and the state of a row before it.
struct Moment<R> {
    time: usize,
    h: Vec<R>,
    c: Vec<R>,
}

/// `to += terms`, in `to[0]` as they are and in `to[1]` their absolute values.
fn add<R: Real>(to: [&mut R; 2], term: R) {
    let [value, magnitude] = to;
    *value += term;
    *magnitude += term.max(-term);
}

impl<R: Real> Sweep<'_, R> {
    /// The steps of a row in the order in which they ran.
    fn tape(&self, row: usize, initial: Initial<'_, R>) -> Vec<Moment<R>> {
        let Problem {
            hidden_size,
            seq_len,
            batch,
            ..
        } = *self.problem;
        let take = |x: Option<&[R]>, len: usize| match x {
            Some(x) => x[(self.at * batch + row) * len..][..len].to_vec(),
            None => vec![R::ZERO; len],
        };
        let mut h = take(initial.h_0, self.problem.state_size());
        let mut c = take(initial.c_0, hidden_size);
        let length = initial
            .lengths
            .map_or(seq_len, |lengths| lengths[row] as usize);
        let reverse = self.direction == 1 || self.problem.direction == Direction::Reverse;
        let times = 0..length.min(seq_len);
        let times: Vec<usize> = if reverse {
            times.rev().collect()
        } else {
            times.collect()
        };
        let step = |time: usize| {
            let moment = Moment {
                time,
                h: h.clone(),
                c: c.clone(),
            };
            let x = self.x(time, row);
            one_step(
                self.problem,
                self.direction,
                self.weights,
                x,
                &mut h,
                &mut c,
            );
            moment
        };
        times.into_iter().map(step).collect()
    }

    fn x(&self, time: usize, row: usize) -> &[R] {
        let tokens = (self.problem.seq_len * self.problem.batch).max(1);
        let width = self.input.len() / tokens;
        &self.input[(time * self.problem.batch + row) * width..][..width]
    }

    /// The gradients of one row's steps, from the last to the first.
    fn row(
        &self,
        row: usize,
        tape: &[Moment<R>],
        grad_output: &[R],
        upstream: Upstream<'_, R>,
        grad_input: &mut [Vec<R>; 2],
        results: &mut [Gradients<R>; 2],
    ) {
        let Problem {
            hidden_size,
            seq_len,
            batch,
            ..
        } = *self.problem;
        let directions = self.problem.direction.count() as usize;
        let state_size = self.problem.state_size();
        let last = |x: Option<&[R]>, len: usize| match x {
            Some(x) => x[(self.at * batch + row) * len..][..len].to_vec(),
            None => vec![R::ZERO; len],
        };
        let mut dh = last(upstream.h_n, state_size);
        let mut dc = last(upstream.c_n, hidden_size);
        let mut magnitudes = [dh.clone(), dc.clone()];
        for (position, moment) in tape.iter().enumerate().rev() {
            let next = position + 1;
            let cut = self.problem.truncate.is_some_and(|every| next % every == 0);
            if cut && next < tape.len() {
                dh.fill(R::ZERO);
                dc.fill(R::ZERO);
            }
            let token = (moment.time * batch + row) * directions + self.direction;
            for (dh, &arriving) in dh.iter_mut().zip(&grad_output[token * state_size..]) {
                *dh += arriving;
            }
            let norm = &mut results[0].norms[self.at * seq_len + moment.time];
            dh.iter().for_each(|&dh| *norm += dh * dh);
            results[1].norms[self.at * seq_len + moment.time] = *norm;

            let x = self.x(moment.time, row);
            let step = self.step(x, moment, &dh, &dc);
            let [value, magnitude] = results;
            let (value, magnitude) = (&mut value.weights[self.at], &mut magnitude.weights[self.at]);
            let width = x.len();
            for (gate_row, (&of_x, &of_h)) in step.gates_x.iter().zip(&step.gates_h).enumerate() {
                for (k, &x) in x.iter().enumerate() {
                    let at = gate_row * width + k;
                    let to = [&mut value.weight_ih[at], &mut magnitude.weight_ih[at]];
                    add(to, of_x * x);
                    let token = (moment.time * batch + row) * width + k;
                    let [value, magnitude] = &mut *grad_input;
                    let to = [&mut value[token], &mut magnitude[token]];
                    add(to, of_x * self.weights.weight_ih[at]);
                }
                let factors = match gate_row / hidden_size {
                    2 if self.problem.cell == Cell::GruResetBefore => &step.reset_h,
                    _ => &moment.h,
                };
                for (k, &h) in factors.iter().enumerate() {
                    let at = gate_row * state_size + k;
                    let to = [&mut value.weight_hh[at], &mut magnitude.weight_hh[at]];
                    add(to, of_h * h);
                }
                if !value.bias_ih.is_empty() {
                    let to = [
                        &mut value.bias_ih[gate_row],
                        &mut magnitude.bias_ih[gate_row],
                    ];
                    add(to, of_x);
                    let to = [
                        &mut value.bias_hh[gate_row],
                        &mut magnitude.bias_hh[gate_row],
                    ];
                    add(to, of_h);
                }
            }
            if !value.peephole.is_empty() {
                for (at, &term) in step.peephole.iter().enumerate() {
                    add([&mut value.peephole[at], &mut magnitude.peephole[at]], term);
                }
            }
            for (at, (value, magnitude)) in value
                .weight_hr
                .iter_mut()
                .zip(&mut magnitude.weight_hr)
                .enumerate()
            {
                let term = dh[at / hidden_size] * step.unprojected[at % hidden_size];
                add([value, magnitude], term);
            }
            magnitudes = [step.dh_magnitude, step.dc.clone()];
            (dh, dc) = (step.dh, step.dc);
        }
        let [h_magnitude, c_magnitude] = magnitudes;
        for (result, h, c) in [(0, dh, dc), (1, h_magnitude, c_magnitude)] {
            let absolute = |x: &R| if result == 1 { x.max(-*x) } else { *x };
            let at = self.at * batch + row;
            let result = &mut results[result];
            for (to, x) in result.h_0[at * state_size..].iter_mut().zip(&h) {
                *to = absolute(x);
            }
            if self.problem.cell.has_cell_state() {
                for (to, x) in result.c_0[at * hidden_size..].iter_mut().zip(&c) {
                    *to = absolute(x);
                }
            }
        }
    }
}

/// What one step of one row hands down.
struct Step<R> {
    /// of the gates before their activation, by way of `x` and by way of `h`; they differ in a GRU
    gates_x: Vec<R>,
    gates_h: Vec<R>,
    /// what a GRU that resets before the product multiplies for n
    reset_h: Vec<R>,
    peephole: Vec<R>,
    /// what a projection multiplies
    unprojected: Vec<R>,
    /// of the state before the step
    dh: Vec<R>,
    dh_magnitude: Vec<R>,
    dc: Vec<R>,
}

impl<R: Real> Sweep<'_, R> {
    /// `dh` and `dc` are those of the state after the step.
    fn step(&self, x: &[R], moment: &Moment<R>, dh: &[R], dc: &[R]) -> Step<R> {
        let (cell, hidden) = (self.problem.cell, self.problem.hidden_size);
        let weights = self.weights;
        let Activations {
            gate,
            candidate,
            output,
        } = self
            .problem
            .activations
            .map_or(cell.activations(), |all| all[self.direction]);
        let clip = self.problem.clip.map_or(f64::INFINITY, f64::from);
        let bounded = |function: Activation, x: R| {
            let clipped = x.max(R::from_f64(-clip)).min(R::from_f64(clip));
            let slope = match x.max(-x).to_f64() > clip {
                true => R::ZERO,
                false => derivative(function, x),
            };
            (activation(function, clipped), slope)
        };
        let from_x = affine(&weights.weight_ih, x, &weights.bias_ih);
        let mut from_h = affine(&weights.weight_hh, &moment.h, &weights.bias_hh);
        let mut reset_h = Vec::new();
        if cell == Cell::GruResetBefore {
            let r = |unit: usize| bounded(gate, from_x[unit] + from_h[unit]).0;
            reset_h = (0..hidden).map(|unit| r(unit) * moment.h[unit]).collect();
            let again = affine(&weights.weight_hh, &reset_h, &weights.bias_hh);
            from_h[2 * hidden..].copy_from_slice(&again[2 * hidden..]);
        }
        let rows = cell.num_gates() as usize * hidden;
        let mut step = Step {
            gates_x: vec![R::ZERO; rows],
            gates_h: vec![R::ZERO; rows],
            reset_h,
            peephole: vec![R::ZERO; weights.peephole.len()],
            unprojected: vec![R::ZERO; hidden],
            dh: vec![R::ZERO; self.problem.state_size()],
            dh_magnitude: Vec::new(),
            dc: vec![R::ZERO; hidden],
        };
        // from here on of the hidden state before its projection
        let projected: Vec<R>;
        let mut dh = dh;
        if self.problem.proj_size.is_some() {
            let of = |unit: usize| {
                let terms = dh
                    .iter()
                    .zip(weights.weight_hr[unit..].iter().step_by(hidden));
                terms.fold(R::ZERO, |sum, (&dh, &weight)| sum + dh * weight)
            };
            projected = (0..hidden).map(of).collect();
            dh = &projected;
        }
        for unit in 0..hidden {
            let sum = |gate: usize| from_x[gate * hidden + unit] + from_h[gate * hidden + unit];
            let h = moment.h.get(unit).copied().unwrap_or(R::ZERO);
            let c = moment.c[unit];
            match cell {
                Cell::RnnTanh | Cell::RnnRelu => {
                    step.gates_x[unit] = dh[unit] * bounded(candidate, sum(0)).1;
                }
                Cell::Lstm | Cell::LstmCoupled => {
                    let coupled = cell == Cell::LstmCoupled;
                    let peephole = |which: usize| {
                        let weight = weights.peephole.get(which * hidden + unit);
                        weight.copied().unwrap_or(R::ZERO)
                    };
                    let (i, slope_i) = bounded(gate, sum(0) + peephole(0) * c);
                    let (f, slope_f) = match coupled {
                        true => (R::ONE - i, R::ZERO),
                        false => bounded(gate, sum(1) + peephole(1) * c),
                    };
                    let (g, slope_g) = bounded(candidate, sum(2));
                    let next_c = f * c + i * g;
                    let (o, slope_o) = bounded(gate, sum(3) + peephole(2) * next_c);
                    let squashed = activation(output, next_c);
                    step.unprojected[unit] = o * squashed;
                    let d_o = dh[unit] * squashed * slope_o;
                    let d_c =
                        dc[unit] + dh[unit] * o * derivative(output, next_c) + peephole(2) * d_o;
                    let coupling = if coupled { c } else { R::ZERO };
                    let d_i = d_c * (g - coupling) * slope_i;
                    let d_f = d_c * c * slope_f;
                    let d_g = d_c * i * slope_g;
                    for (gate, d) in [d_i, d_f, d_g, d_o].into_iter().enumerate() {
                        step.gates_x[gate * hidden + unit] = d;
                    }
                    step.dc[unit] = d_c * f + peephole(0) * d_i + peephole(1) * d_f;
                    for (which, term) in [d_i * c, d_f * c, d_o * next_c].into_iter().enumerate() {
                        if let Some(to) = step.peephole.get_mut(which * hidden + unit) {
                            *to = term;
                        }
                    }
                }
                Cell::Gru => {
                    let (r, slope_r) = bounded(gate, sum(0));
                    let (z, slope_z) = bounded(gate, sum(1));
                    let inner = from_h[2 * hidden + unit];
                    let (n, slope_n) = bounded(candidate, from_x[2 * hidden + unit] + r * inner);
                    let d_n = dh[unit] * (R::ONE - z) * slope_n;
                    step.gates_x[unit] = d_n * inner * slope_r;
                    step.gates_x[hidden + unit] = dh[unit] * (h - n) * slope_z;
                    step.gates_x[2 * hidden + unit] = d_n;
                    step.gates_h[2 * hidden + unit] = d_n * r;
                    step.dh[unit] = dh[unit] * z;
                }
                Cell::GruResetBefore => {
                    let (z, slope_z) = bounded(gate, sum(1));
                    let (n, slope_n) = bounded(candidate, sum(2));
                    step.gates_x[hidden + unit] = dh[unit] * (h - n) * slope_z;
                    step.gates_x[2 * hidden + unit] = dh[unit] * (R::ONE - z) * slope_n;
                    step.dh[unit] = dh[unit] * z;
                }
            }
        }
        let own = if cell == Cell::Gru { 2 * hidden } else { rows };
        step.gates_h[..own].copy_from_slice(&step.gates_x[..own]);
        step.dh_magnitude = step.dh.iter().map(|&dh| dh.max(-dh)).collect();
        let mut products = rows;
        if cell == Cell::GruResetBefore {
            // by way of r h first, which n multiplies
            let mut reset = [vec![R::ZERO; hidden], vec![R::ZERO; hidden]];
            self.multiply(&step.gates_h, 2 * hidden..rows, &mut reset);
            let [d_reset, magnitude] = reset;
            for unit in 0..hidden {
                let (r, slope) = bounded(gate, from_x[unit] + from_h[unit]);
                step.gates_x[unit] = d_reset[unit] * moment.h[unit] * slope;
                step.gates_h[unit] = step.gates_x[unit];
                step.dh[unit] += d_reset[unit] * r;
                step.dh_magnitude[unit] += (magnitude[unit] * r).max(-(magnitude[unit] * r));
            }
            products = 2 * hidden;
        }
        let mut both = [
            std::mem::take(&mut step.dh),
            std::mem::take(&mut step.dh_magnitude),
        ];
        self.multiply(&step.gates_h, 0..products, &mut both);
        [step.dh, step.dh_magnitude] = both;
        step
    }

    /// Adds `gates^T weight_hh` over some gate rows.
    fn multiply(&self, gates: &[R], rows: std::ops::Range<usize>, to: &mut [Vec<R>; 2]) {
        let width = self.problem.state_size();
        let [value, magnitude] = to;
        for gate_row in rows {
            for unit in 0..width {
                let term = gates[gate_row] * self.weights.weight_hh[gate_row * width + unit];
                add([&mut value[unit], &mut magnitude[unit]], term);
            }
        }
    }
}

/// Of [`activation`].
fn derivative<R: Real>(function: Activation, x: R) -> R {
    let number = |value: f64| R::from_f64(value);
    let y = activation(function, x);
    // of the sigmoid, exact where it is saturated
    let sigmoid = |x: R| {
        let small = (-x.max(-x)).exp();
        small / ((R::ONE + small) * (R::ONE + small))
    };
    match function {
        Activation::Sigmoid => sigmoid(x),
        Activation::Tanh | Activation::ScaledTanh => number(4.0) * sigmoid(number(2.0) * x),
        Activation::Relu if x <= R::ZERO => R::ZERO,
        Activation::LeakyRelu if x < R::ZERO => number(0.01),
        Activation::ThresholdedRelu if x <= R::ONE => R::ZERO,
        Activation::HardSigmoid if y > R::ZERO && y < R::ONE => number(0.2),
        Activation::HardSigmoid => R::ZERO,
        Activation::Elu if x < R::ZERO => x.exp(),
        Activation::Relu
        | Activation::Affine
        | Activation::LeakyRelu
        | Activation::ThresholdedRelu
        | Activation::Elu => R::ONE,
        Activation::Softsign => {
            let root = R::ONE / (R::ONE + x.max(-x));
            root * root
        }
        Activation::Softplus => R::ONE / (R::ONE + (-x).exp()),
    }
}
