//! The result against the f64 reference, in full or in a sample of sequences and steps.

use std::ops::Range;

use gatefold::MinRecurrentShape;
use gatefold::reference::compare::{Difference, Tolerance, compare_with};
use gatefold::reference::tracked::{Tracked, magnitudes};

use super::{Call, MinRecurrent};
use crate::error::{Error, Result};
use crate::tensors::{Tensor, Tensors, floats};

/// Multiply-adds that the reference may take in each precision: some seconds of one core.
const AFFORDABLE: usize = 1_000_000_000;

/// A sample has no fewer steps.
const FEWEST_STEPS: usize = 16;

pub fn check(
    problem: &MinRecurrent,
    inputs: &Tensors,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let call = problem.call(inputs)?;
    let (rows, times) = sample(problem);
    let (seq_len, batch) = (problem.shape.seq_len as usize, problem.shape.batch as usize);
    let is_all = rows.len() == batch && times.len() == seq_len;
    let (sampled, call) = match is_all {
        true => (*problem, call),
        false => cut(problem, call, &rows, &times),
    };
    let truth = call.convert::<f64>().compute(&sampled);
    let tracked = call.convert::<Tracked>().compute(&sampled);
    let yardstick = call.compute(&sampled);
    let mut worst: f64 = 0.0;
    for (i, (name, truth)) in truth.iter().enumerate() {
        let tensor = Tensor::f32(&got[name].shape, floats(got, name)?.to_vec());
        let wanted = problem.results();
        let order = wanted.iter().find(|wanted| wanted.name == *name);
        let tensor = order.map_or_else(|| tensor.clone(), |wanted| tensor.permuted(wanted.order));
        let mut shape = tensor.shape.clone();
        let mut values = tensor.into_f32();
        if !is_all {
            if !values.iter().all(|value| value.is_finite()) {
                // what the sample leaves out was written at least
                return Err(Error::failed(format_args!("{name} is not finite")));
            }
            // sums over everything, and last states where the last steps are left out, are not in the sample
            let steps = ["output", "grad_input"].contains(&name.as_str());
            if !steps && (name.contains("_l") || times.len() < seq_len) {
                continue;
            }
            let outer = if steps { times.clone() } else { 0..shape[0] };
            values = pick(batch, &rows, &values, outer.clone(), shape[2]);
            shape = vec![outer.len(), rows.len(), shape[2]];
        }
        let tolerance = match i {
            0 | 1 => Tolerance::RECURRENT,
            _ => Tolerance::GRADIENT,
        };
        let magnitude = magnitudes(&tracked[i].1);
        let yardstick = &yardstick[i].1;
        match compare_with(
            name, &shape, &values, truth, &magnitude, yardstick, tolerance,
        ) {
            Ok(agreement) => worst = worst.max(agreement.error),
            Err(difference) => return Ok(Err(Box::new(difference))),
        }
    }
    Ok(Ok(worst))
}

/// Which sequences of the batch, and which times: sequences know nothing of each other, and first steps nothing of
/// those behind; but gradients come from behind.
fn sample(problem: &MinRecurrent) -> (Vec<usize>, Range<usize>) {
    let (seq_len, batch) = (problem.shape.seq_len as usize, problem.shape.batch as usize);
    let layers = 0..problem.config.num_layers;
    let width: usize = layers.map(|layer| problem.layer_input(layer)).sum();
    let passes = if problem.grad.is_some() { 4 } else { 1 };
    let step = problem.rows() * width * passes;
    let count = (AFFORDABLE / (step * seq_len).max(1))
        .clamp(1, 4.max(batch))
        .min(batch);
    let steps = AFFORDABLE / (step * count).max(1);
    let steps = match problem.grad.is_some() || problem.lengths {
        true => seq_len,
        false => steps.max(FEWEST_STEPS).min(seq_len),
    };
    let last = batch.saturating_sub(1);
    // both ends of the batch are among them
    let rows = (0..count).map(|k| k * last / (count - 1).max(1));
    let times = match problem.config.reverse {
        true => seq_len - steps..seq_len,
        false => 0..steps,
    };
    (rows.collect(), times)
}

/// The sample as a problem of its own.
fn cut(
    problem: &MinRecurrent,
    call: Call<f32>,
    rows: &[usize],
    times: &Range<usize>,
) -> (MinRecurrent, Call<f32>) {
    let cut = MinRecurrent {
        shape: MinRecurrentShape {
            seq_len: times.len() as u32,
            batch: rows.len() as u32,
        },
        ..*problem
    };
    let (batch, hidden) = (
        problem.shape.batch as usize,
        problem.config.hidden_size as usize,
    );
    let layers = 0..problem.config.num_layers as usize;
    let all =
        |values: Vec<f32>, outer: Range<usize>, width| pick(batch, rows, &values, outer, width);
    let states = |values: Option<Vec<f32>>| Some(all(values?, layers.clone(), hidden));
    let lengths = call
        .lengths
        .map(|lengths| rows.iter().map(|&row| lengths[row]).collect());
    let call = Call {
        input: all(
            call.input,
            times.clone(),
            problem.config.input_size as usize,
        ),
        weights: call.weights,
        h_0: states(call.h_0),
        lengths,
        grad_output: call
            .grad_output
            .map(|grad| all(grad, times.clone(), hidden)),
        grad_h_n: states(call.grad_h_n),
    };
    (cut, call)
}

/// The sampled rows of `values`, `[outer, batch, width]`, at some places of the outer axis.
fn pick(
    batch: usize,
    rows: &[usize],
    values: &[f32],
    outer: Range<usize>,
    width: usize,
) -> Vec<f32> {
    let at = outer.flat_map(|outer| rows.iter().map(move |row| outer * batch + row));
    at.flat_map(|at| &values[at * width..][..width])
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Problem as _;
    use crate::ops::min_recurrent::{Grad, options::problem};
    use gatefold::MinCell;

    #[test]
    fn a_sample_is_the_same_computation() {
        let mut problem = problem(MinCell::Lstm, [5, 9, 3, 4, 2]);
        problem.h_0 = true;
        problem.grad = Some(Grad {
            output: true,
            h_n: true,
        });
        let inputs = problem.random(1);
        let all = problem.call(&inputs).unwrap().compute(&problem);
        let rows = [0, 4];
        let call = problem.call(&inputs).unwrap();
        let (cut, call) = cut(&problem, call, &rows, &(0..9));
        let part = call.compute(&cut);
        for (name, width) in [("output", 4), ("grad_input", 3)] {
            let find = |all: &[(String, Vec<f32>)]| {
                all.iter()
                    .find(|(found, _)| found == name)
                    .unwrap()
                    .1
                    .clone()
            };
            let picked = pick(5, &rows, &find(&all), 0..9, width);
            assert_eq!(picked, find(&part), "{name}");
        }
    }

    #[test]
    fn large_problems_are_sampled() {
        let large = problem(MinCell::Gru, [64, 4096, 512, 512, 1]);
        let (rows, times) = sample(&large);
        assert!(rows.len() < 64 && times.len() <= 4096 && times.len() >= FEWEST_STEPS);
        let small = problem(MinCell::Gru, [3, 19, 7, 13, 1]);
        assert_eq!(sample(&small), (vec![0, 1, 2], 0..19));
    }
}
