//! The result against the f64 reference, in full or in a sample of rows and steps.

use std::ops::Range;

use gatefold::Direction;
use gatefold::reference::compare::{Difference, Tolerance, compare};
use gatefold::reference::recurrent::{Output, Problem};

use super::Recurrent;
use super::call::Call;
use crate::error::{Error, Result};
use crate::tensors::{Tensors, floats};

/// Multiply-adds that the reference may take in each precision: about a second of one core.
const AFFORDABLE: usize = 400_000_000;

/// A sample has no fewer rows of the batch, and no fewer steps.
const FEWEST_ROWS: usize = 4;
const FEWEST_STEPS: usize = 16;

pub fn check(
    problem: &Recurrent,
    inputs: &Tensors,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let p = problem.reference();
    let mut values = Vec::new();
    for wanted in problem.outputs() {
        values.push(floats(got, wanted.name)?.to_vec());
    }
    let mut values = values.into_iter();
    let mut next = || values.next().unwrap_or_default();
    let got = Output {
        output: next(),
        h_n: next(),
        c_n: next(),
    };
    let call = problem.call(inputs)?;
    let sample = Sample::new(&p);
    if sample.is_all(&p) || call.lengths.is_some() {
        return Ok(agree(&p, &call, &got));
    }
    let all = [&got.output, &got.h_n, &got.c_n];
    if !all
        .iter()
        .all(|values| values.iter().all(|value| value.is_finite()))
    {
        // what the sample leaves out was written at least
        return Err(Error::failed("the result is not finite"));
    }
    let (cut, call, got) = sample.cut(&p, call, &got);
    Ok(agree(&cut, &call, &got).map_err(|mut difference| {
        difference.index[0] += sample.times(&p).start;
        difference.index[1] = sample.rows[difference.index[1]];
        difference
    }))
}

/// Which rows of the batch, and how many steps of them.
struct Sample {
    rows: Vec<usize>,
    steps: usize,
}

impl Sample {
    /// Rows of a batch know nothing of each other, and the first steps of a sequence nothing of those behind:
    /// a few rows and their first steps are the same computation as in the whole. With two directions every
    /// output depends on both ends, and no step can be left out.
    fn new(p: &Problem) -> Self {
        let directions = p.direction.count() as usize;
        let inner = (p.num_layers - 1) * (directions + 1) * p.state_size();
        let width = p.input_size + p.state_size() + inner;
        let step = directions * p.cell.num_gates() as usize * p.hidden_size * width;
        let affordable_rows = AFFORDABLE / (step * p.seq_len).max(1);
        let fewest_rows = if directions == 2 { 1 } else { FEWEST_ROWS };
        let count = affordable_rows.max(fewest_rows).min(p.batch);
        let affordable_steps = AFFORDABLE / (step * count).max(1);
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
        let call = Call {
            input: of_times(&call.input, p.input_size),
            h_0: call.h_0.as_deref().map(|h| of_layers(h, state)),
            c_0: call.c_0.as_deref().map(|c| of_layers(c, hidden)),
            ..call
        };
        (cut, call, got)
    }

    /// The sampled rows of `values`, `[outer, batch, width]`, at some places of the outer axis.
    fn pick(&self, batch: usize, values: &[f32], outer: Range<usize>, width: usize) -> Vec<f32> {
        let at = outer.flat_map(|outer| self.rows.iter().map(move |row| outer * batch + row));
        at.flat_map(|at| &values[at * width..][..width])
            .copied()
            .collect()
    }
}

fn agree(p: &Problem, call: &Call, got: &Output<f32>) -> Result<f64, Box<Difference>> {
    let (truth, yardstick) = (call.reference::<f64>(p), call.reference::<f32>(p));
    let directions = p.direction.count() as usize;
    let states = |width| [p.num_layers * directions, p.batch, width];
    let output = [p.seq_len, p.batch, directions * p.state_size()];
    let (h_n, c_n) = (states(p.state_size()), states(p.hidden_size));
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
        let agreement = compare(name, &shape, got, truth, yardstick, Tolerance::RECURRENT)?;
        worst = worst.max(agreement.error);
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Problem as _;
    use crate::ops::recurrent::grid::problem;
    use crate::tensors::Tensor;
    use gatefold::Cell;

    #[test]
    fn samples_keep_both_ends_of_the_batch() {
        let p = problem(Cell::Lstm, [64, 4096, 256, 256, 1], Direction::Forward).reference();
        let sample = Sample::new(&p);
        assert!(sample.steps < p.seq_len && sample.steps >= FEWEST_STEPS);
        assert_eq!(
            (sample.rows[0], sample.rows[sample.rows.len() - 1]),
            (0, 63)
        );
        let one = Problem { batch: 1, ..p };
        assert_eq!(Sample::new(&one).rows, [0]);
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
                agree(&cut, &call, &got)
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
        assert!(check(&problem, &inputs, &got).unwrap().is_ok());
        let mut values = floats(&got, "c_n").unwrap().to_vec();
        values[5] += 0.1;
        got.insert("c_n".into(), Tensor::f32(&[2, 2, 4], values));
        let difference = check(&problem, &inputs, &got).unwrap().unwrap_err();
        assert_eq!(
            (difference.name.as_str(), difference.index),
            ("c_n", vec![0, 1, 1])
        );
    }
}
