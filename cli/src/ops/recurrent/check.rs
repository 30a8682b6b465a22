//! The result against the f64 reference, in full or in a sample of rows and steps.

use std::ops::Range;

use gatefold::reference::compare::{Difference, Tolerance, compare, compare_with};
use gatefold::reference::recurrent::{Output, Problem};
use gatefold::{Direction, Variant};

use super::call::Call;
use super::{Recurrent, gradients};
use crate::error::{Error, Result};
use crate::tensors::{Data, Tensor, Tensors, floats};

/// Multiply-adds that the reference may take in each precision: about a second of one core.
const AFFORDABLE: usize = 400_000_000;

/// A sample has no fewer rows of the batch, and no fewer steps.
const FEWEST_ROWS: usize = 4;
const FEWEST_STEPS: usize = 16;

pub fn check(
    problem: &Recurrent,
    variant: Variant,
    inputs: &Tensors,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let call = problem.call(inputs)?;
    if !problem.batch_first {
        return check_call(problem, variant, call, got);
    }
    // time first, as the reference has it
    let mut plain = got.clone();
    for wanted in problem
        .forward_outputs()
        .into_iter()
        .chain(gradients::wanted(problem))
    {
        if let Some(tensor) = got.get(&wanted.name) {
            plain.insert(wanted.name.clone(), wanted.undone(tensor));
        }
    }
    let problem = Recurrent {
        batch_first: false,
        ..*problem
    };
    check_call(&problem, variant, call, &plain)
}

/// [`check`] of a call whose results have their time first.
fn check_call(
    problem: &Recurrent,
    variant: Variant,
    call: Call,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let p = problem.reference();
    let mut values = Vec::new();
    for wanted in problem.forward_outputs() {
        values.push(floats(got, &wanted.name)?.to_vec());
    }
    let mut values = values.into_iter();
    let mut next = || values.next().unwrap_or_default();
    let output = Output {
        output: next(),
        h_n: next(),
        c_n: next(),
    };
    let sample = Sample::of(problem);
    if sample.is_all(&p) {
        let forward = match agree(&p, variant, &call, &output) {
            Ok(error) => error,
            Err(difference) => return Ok(Err(difference)),
        };
        if !problem.grad {
            return Ok(Ok(forward));
        }
        let backward = gradients_agree(problem, &call, got)?;
        return Ok(backward.map(|error| error.max(forward)));
    }
    let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    for (name, tensor) in got {
        if !matches!(&tensor.data, Data::F32(values) if finite(values)) {
            // what the sample leaves out was written at least
            return Err(Error::failed(format_args!("{name} is not finite")));
        }
    }
    let (cut, call, output) = sample.cut(&p, call, &output);
    let forward = match agree(&cut, variant, &call, &output) {
        Ok(error) => error,
        Err(mut difference) => {
            difference.index[0] += sample.times(&p).start;
            difference.index[1] = sample.rows[difference.index[1]];
            return Ok(Err(difference));
        }
    };
    if !problem.grad {
        return Ok(Ok(forward));
    }
    let got = sample.cut_gradients(&p, got)?;
    let mut problem = *problem;
    problem.shape.batch = cut.batch as u32;
    problem.shape.seq_len = cut.seq_len as u32;
    let backward = gradients_agree(&problem, &call, &got)?;
    Ok(backward.map(|error| error.max(forward)))
}

/// Which rows of the batch, and how many steps of them.
pub struct Sample {
    rows: Vec<usize>,
    steps: usize,
}

impl Sample {
    /// Rows of a batch know nothing of each other, and the first steps of a sequence nothing of those behind:
    /// a few rows and their first steps are the same computation as in the whole. With two directions every
    /// output depends on both ends, and no step can be left out.
    ///
    /// Gradients of weights are sums over all rows: where they are wanted, no gradient arrives outside of the
    /// sample (see [`Sample::keep`]).
    pub fn of(problem: &Recurrent) -> Self {
        let p = problem.reference();
        if problem.given.lengths {
            return Self {
                rows: (0..p.batch).collect(),
                steps: p.seq_len,
            };
        }
        // forward, and two products for each of its products backward
        Self::new(
            &p,
            if problem.grad {
                AFFORDABLE / 4
            } else {
                AFFORDABLE
            },
        )
    }

    fn new(p: &Problem, affordable: usize) -> Self {
        let directions = p.direction.count() as usize;
        let inner = (p.num_layers - 1) * (directions + 1) * p.state_size();
        let width = p.input_size + p.state_size() + inner;
        let step = directions * p.cell.num_gates() as usize * p.hidden_size * width;
        let affordable_rows = affordable / (step * p.seq_len).max(1);
        let fewest_rows = if directions == 2 { 1 } else { FEWEST_ROWS };
        let count = affordable_rows.max(fewest_rows).min(p.batch);
        let affordable_steps = affordable / (step * count).max(1);
        let steps = match directions {
            2 => p.seq_len,
            _ => affordable_steps.max(FEWEST_STEPS).min(p.seq_len),
        };
        // both ends of the batch are among them
        let rows = (0..count).map(|k| k * (p.batch - 1) / (count - 1).max(1));
        Self {
            rows: rows.collect(),
            steps,
        }
    }

    fn is_all(&self, p: &Problem) -> bool {
        (self.rows.len(), self.steps) == (p.batch, p.seq_len)
    }

    /// The times of the first steps.
    fn times(&self, p: &Problem) -> Range<usize> {
        match p.direction {
            Direction::Reverse => p.seq_len - self.steps..p.seq_len,
            _ => 0..self.steps,
        }
    }

    /// The sample as a problem of its own, with its inputs and results. The last states are part of it only
    /// if all steps are.
    fn cut(&self, p: &Problem, call: Call, got: &Output<f32>) -> (Problem, Call, Output<f32>) {
        let cut = Problem {
            batch: self.rows.len(),
            seq_len: self.steps,
            ..*p
        };
        let directions = p.direction.count() as usize;
        let layers = p.num_layers * directions;
        let (hidden, state) = (p.hidden_size, p.state_size());
        let of_times = |values: &[f32], width| self.pick(p.batch, values, self.times(p), width);
        let of_layers = |values: &[f32], width| self.pick(p.batch, values, 0..layers, width);
        let last = |values: &[f32], width| match self.steps == p.seq_len && !values.is_empty() {
            true => of_layers(values, width),
            false => Vec::new(),
        };
        let got = Output {
            output: of_times(&got.output, directions * state),
            h_n: last(&got.h_n, state),
            c_n: last(&got.c_n, hidden),
        };
        let [grad_output, grad_h_n, grad_c_n] = &call.upstream;
        let upstream = [
            grad_output
                .as_deref()
                .map(|values| of_times(values, directions * state)),
            grad_h_n.as_deref().map(|values| of_layers(values, state)),
            grad_c_n.as_deref().map(|values| of_layers(values, hidden)),
        ];
        let call = Call {
            upstream,
            input: of_times(&call.input, p.input_size),
            h_0: call.h_0.as_deref().map(|h| of_layers(h, state)),
            c_0: call.c_0.as_deref().map(|c| of_layers(c, hidden)),
            ..call
        };
        (cut, call, got)
    }

    /// Zeros for what arrives outside of the sample: `values` is `[seq_len, batch, width]`.
    pub fn keep(&self, p: &Problem, values: &mut [f32]) {
        if values.is_empty() {
            return;
        }
        let width = values.len() / (p.seq_len * p.batch);
        let times = self.times(p);
        for (token, values) in values.chunks_mut(width).enumerate() {
            if !times.contains(&(token / p.batch)) || !self.rows.contains(&(token % p.batch)) {
                values.fill(0.0);
            }
        }
    }

    /// The gradients of the sample: those that belong to rows or steps in part, the others whole. Of problems that
    /// are made up, which have PyTorch's layout.
    fn cut_gradients(&self, p: &Problem, got: &Tensors) -> Result<Tensors> {
        let mut all = Tensors::new();
        let times = self.times(p);
        for (name, tensor) in got.iter().filter(|(name, _)| name.starts_with("grad_")) {
            let values = floats(got, name)?;
            let layers = tensor.shape[0];
            let (shape, values) = match name.as_str() {
                "grad_input" => {
                    let picked = self.pick(p.batch, values, times.clone(), p.input_size);
                    (vec![times.len(), self.rows.len(), p.input_size], picked)
                }
                "grad_h_0" | "grad_c_0" => {
                    let width = tensor.shape[2];
                    let picked = self.pick(p.batch, values, 0..layers, width);
                    (vec![layers, self.rows.len(), width], picked)
                }
                "grad_norms" => {
                    let rows = values.chunks(p.seq_len);
                    let picked = rows.flat_map(|row| &row[times.clone()]).copied();
                    (vec![layers, times.len()], picked.collect())
                }
                _ => (tensor.shape.clone(), values.to_vec()),
            };
            all.insert(name.clone(), Tensor::f32(&shape, values));
        }
        Ok(all)
    }

    /// The sampled rows of `values`, `[outer, batch, width]`, at some places of the outer axis.
    fn pick(&self, batch: usize, values: &[f32], outer: Range<usize>, width: usize) -> Vec<f32> {
        let at = outer.flat_map(|outer| self.rows.iter().map(move |row| outer * batch + row));
        at.flat_map(|at| &values[at * width..][..width])
            .copied()
            .collect()
    }
}

fn agree(
    p: &Problem,
    variant: Variant,
    call: &Call,
    got: &Output<f32>,
) -> Result<f64, Box<Difference>> {
    let (truth, yardstick) = (call.reference::<f64>(p), call.reference::<f32>(p));
    let directions = p.direction.count() as usize;
    let states = |width| [p.num_layers * directions, p.batch, width];
    let output = [p.seq_len, p.batch, directions * p.state_size()];
    let (h_n, c_n) = (states(p.state_size()), states(p.hidden_size));
    let tolerance = Tolerance::recurrent(variant);
    let mut worst: f64 = 0.0;
    for (name, shape, got, truth, yardstick) in [
        (
            "output",
            output,
            &got.output,
            &truth.output,
            &yardstick.output,
        ),
        ("h_n", h_n, &got.h_n, &truth.h_n, &yardstick.h_n),
        ("c_n", c_n, &got.c_n, &truth.c_n, &yardstick.c_n),
    ] {
        if got.is_empty() {
            continue;
        }
        let agreement = compare(name, &shape, got, truth, yardstick, tolerance)?;
        worst = worst.max(agreement.error);
    }
    Ok(worst)
}

/// Every gradient, under the format's names.
fn gradients_agree(
    problem: &Recurrent,
    call: &Call,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let p = problem.reference();
    let [truth, magnitude] = call.gradients::<f64>(&p);
    let [yardstick, _] = call.gradients::<f32>(&p);
    let named = |values: Vec<Vec<f64>>| {
        let wanted = gradients::wanted(problem).into_iter().zip(values);
        let tensors = wanted.map(|(wanted, values)| {
            let tensor = Tensor::f64(&wanted.shape, values).permuted(wanted.order);
            (wanted.name, tensor)
        });
        gradients::of_format(problem, tensors.collect())
    };
    let widened = |values: Vec<Vec<f32>>| -> Vec<Vec<f64>> {
        let each = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        values.into_iter().map(each).collect()
    };
    let truth = named(gradients::flat(problem, truth))?;
    let magnitude = named(gradients::flat(problem, magnitude))?;
    let yardstick = named(widened(gradients::flat(problem, yardstick)))?;
    let mut worst: f64 = 0.0;
    for (name, tensor) in &truth {
        let (Data::F64(truth), Data::F64(magnitude)) = (&tensor.data, &magnitude[name].data) else {
            return Err(Error::failed(format_args!("{name}: is not in f64")));
        };
        let yardstick = yardstick[name].clone().into_f32();
        let (shape, got) = (&tensor.shape, floats(got, name)?);
        let tolerance = Tolerance::GRADIENT;
        match compare_with(name, shape, got, truth, magnitude, &yardstick, tolerance) {
            Ok(agreement) => worst = worst.max(agreement.error),
            Err(difference) => return Ok(Err(Box::new(difference))),
        }
    }
    Ok(Ok(worst))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Problem as _;
    use crate::ops::recurrent::grid::problem;
    use gatefold::Cell;

    #[test]
    fn samples_keep_both_ends_of_the_batch() {
        let p = problem(Cell::Lstm, [64, 4096, 256, 256, 1], Direction::Forward).reference();
        let sample = Sample::new(&p, AFFORDABLE);
        assert!(sample.steps < p.seq_len && sample.steps >= FEWEST_STEPS);
        assert_eq!(
            (sample.rows[0], sample.rows[sample.rows.len() - 1]),
            (0, 63)
        );
        let one = Problem { batch: 1, ..p };
        assert_eq!(Sample::new(&one, AFFORDABLE).rows, [0]);
    }

    #[test]
    fn a_sample_is_the_same_computation() {
        for direction in [Direction::Forward, Direction::Reverse] {
            let problem = problem(Cell::Gru, [5, 9, 3, 4, 2], direction);
            let p = problem.reference();
            let inputs = problem.random(1);
            let call = problem.call(&inputs).unwrap();
            let mut got = call.reference::<f32>(&p);
            let sample = Sample {
                rows: vec![0, 4],
                steps: 6,
            };
            let judge = |got: &Output<f32>| {
                let (cut, call, got) = sample.cut(&p, problem.call(&inputs).unwrap(), got);
                agree(&cut, Variant::Portable, &call, &got)
            };
            assert!(judge(&got).is_ok());
            // row 3 of a time within is not looked at, row 4 is
            got.output[(4 * 5 + 3) * 4] += 1.0;
            assert!(judge(&got).is_ok());
            got.output[(4 * 5 + 4) * 4] += 1.0;
            let difference = judge(&got).unwrap_err();
            let time = 4 - sample.times(&p).start;
            assert_eq!(difference.index, [time, 1, 0], "{direction:?}");
        }
    }

    #[test]
    fn a_wrong_last_state_is_found() {
        let problem = problem(Cell::Lstm, [2, 3, 3, 4, 1], Direction::Bidirectional);
        let inputs = problem.random(1);
        let mut got = problem.truth(&inputs).unwrap();
        for tensor in got.values_mut() {
            *tensor = Tensor::f32(&tensor.shape.clone(), tensor.clone().into_f32());
        }
        assert!(
            check(&problem, Variant::Portable, &inputs, &got)
                .unwrap()
                .is_ok()
        );
        let mut values = floats(&got, "c_n").unwrap().to_vec();
        values[5] += 0.1;
        got.insert("c_n".into(), Tensor::f32(&[2, 2, 4], values));
        let difference = check(&problem, Variant::Portable, &inputs, &got)
            .unwrap()
            .unwrap_err();
        assert_eq!(
            (difference.name.as_str(), difference.index),
            ("c_n", vec![0, 1, 1])
        );
    }
}
