//! The reference on named tensors, and the result against it, in full or in part.

use gatefold::Direction;
use gatefold::reference::compare::{Difference, Tolerance, compare};
use gatefold::reference::recurrent::{self as reference, Initial, Output, Weights};
use gatefold::reference::{Real, convert};

use super::Recurrent;
use crate::error::Result;
use crate::tensors::{Data, Tensor, Tensors, floats};

/// Multiply-adds that the reference may take: about a second on one core.
const AFFORDABLE: usize = 300_000_000;

/// The steps that are checked of a sequence too long for the reference are never fewer.
const FEWEST_STEPS: usize = 16;

/// The part of a problem that is checked: the first rows of the batch, and the first steps.
#[derive(Debug, Clone, Copy)]
struct Part {
    rows: usize,
    steps: usize,
}

/// Rows of a batch do not depend on each other, and steps of the forward direction not on later ones; with a
/// reverse direction every output depends on the whole sequence.
fn affordable(problem: &Recurrent) -> Part {
    let [steps, rows, _] = problem.sequence(0);
    let per_step: usize = problem
        .parameters()
        .iter()
        .flatten()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    let rows = rows.min((AFFORDABLE / (per_step * steps).max(1)).max(1));
    let forward = problem.config.direction == Direction::Forward;
    let steps = if forward && rows == 1 {
        steps.min((AFFORDABLE / per_step).max(FEWEST_STEPS))
    } else {
        steps
    };
    Part { rows, steps }
}

/// The values of the first rows and steps of `[steps, rows, ...]`.
fn part<T: Copy>(data: &[T], [steps, rows]: [usize; 2], part: Part) -> Vec<T> {
    let step = data.len() / steps.max(1);
    let wanted = step / rows.max(1) * part.rows;
    let steps = (0..part.steps).map(|at| &data[at * step..][..wanted]);
    steps.flatten().copied().collect()
}

fn run<R: Real>(problem: &Recurrent, inputs: &Tensors, only: Part) -> Result<Output<R>> {
    let config = &problem.config;
    let [seq_len, batch, _] = problem.sequence(0);
    let [states, ..] = problem.state_shape();
    let every = |name: &str| -> Result<Vec<R>> { Ok(convert(floats(inputs, name)?)) };
    let state = |given: bool, name: &str| -> Result<Option<Vec<R>>> {
        if !given {
            return Ok(None);
        }
        let all_states = Part {
            steps: states,
            ..only
        };
        Ok(Some(part(&every(name)?, [states, batch], all_states)))
    };
    let mut weights = Vec::new();
    for own in problem.parameters() {
        let [weight_ih, weight_hh] = [every(&own[0].0)?, every(&own[1].0)?];
        let (bias_ih, bias_hh) = match problem.bias {
            true => (every(&own[2].0)?, every(&own[3].0)?),
            false => (Vec::new(), Vec::new()),
        };
        weights.push(Weights {
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
        });
    }
    let input = part(&problem.input(inputs)?, [seq_len, batch], only);
    let (h_0, c_0) = (state(problem.h_0, "h_0")?, state(problem.c_0, "c_0")?);
    let lengths = problem.lengths(inputs)?;
    let numbers = reference::Problem {
        cell: config.cell,
        input_size: config.input_size as usize,
        hidden_size: config.hidden_size as usize,
        num_layers: config.num_layers as usize,
        direction: config.direction,
        clip: config.clip,
        seq_len: only.steps,
        batch: only.rows,
    };
    let initial = Initial {
        h_0: h_0.as_deref(),
        c_0: c_0.as_deref(),
        lengths: lengths.as_ref().map(|lengths| &lengths[..only.rows]),
    };
    Ok(reference::recurrent(
        &numbers,
        &convert(&input),
        &weights,
        initial,
    ))
}

pub fn truth(problem: &Recurrent, inputs: &Tensors) -> Result<Tensors> {
    let [steps, rows, _] = problem.sequence(0);
    let truth = run::<f64>(problem, inputs, Part { rows, steps })?;
    let output = Tensor::f64(&problem.output_shape(), truth.output);
    let output = match problem.batch_first {
        true => output.swap_axes(),
        false => output,
    };
    let states = problem.state_shape();
    let mut tensors = Tensors::from([
        ("output".to_owned(), output),
        ("h_n".to_owned(), Tensor::f64(&states, truth.h_n)),
    ]);
    if problem.is_lstm() {
        tensors.insert("c_n".to_owned(), Tensor::f64(&states, truth.c_n));
    }
    Ok(tensors)
}

pub fn check(
    problem: &Recurrent,
    inputs: &Tensors,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let only = affordable(problem);
    let [seq_len, batch, width] = problem.output_shape();
    let [states, _, hidden] = problem.state_shape();
    let truth = run::<f64>(problem, inputs, only)?;
    let yardstick = run::<f32>(problem, inputs, only)?;

    let output = match (&got["output"], problem.batch_first) {
        (output, true) => output.swap_axes(),
        (output, false) => output.clone(),
    };
    let Data::F32(output) = output.data else {
        return Ok(Ok(f64::INFINITY));
    };
    let output = part(&output, [seq_len, batch], only);
    let shape = [only.steps, only.rows, width];
    let mut judged = vec![("output", shape, output, truth.output, yardstick.output)];
    // the last state is that of the last step, which a part of the steps does not reach
    if only.steps == seq_len {
        let all_states = Part {
            steps: states,
            ..only
        };
        let shape = [states, only.rows, hidden];
        let mut state = |name, truth, yardstick| -> Result<()> {
            let got = part(floats(got, name)?, [states, batch], all_states);
            judged.push((name, shape, got, truth, yardstick));
            Ok(())
        };
        state("h_n", truth.h_n, yardstick.h_n)?;
        if problem.is_lstm() {
            state("c_n", truth.c_n, yardstick.c_n)?;
        }
    }
    let mut worst: f64 = 0.0;
    for (name, shape, got, truth, yardstick) in judged {
        match compare(name, &shape, &got, &truth, &yardstick, Tolerance::RECURRENT) {
            Ok(agreement) => worst = worst.max(agreement.error),
            Err(difference) => return Ok(Err(Box::new(difference))),
        }
    }
    Ok(Ok(worst))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Problem;
    use crate::ops::recurrent::Cell;
    use gatefold::RecurrentConfig;

    fn problem(direction: Direction) -> Recurrent {
        let config = RecurrentConfig {
            cell: Cell::Lstm,
            input_size: 5,
            hidden_size: 4,
            num_layers: 2,
            direction,
            ..Default::default()
        };
        Recurrent {
            h_0: true,
            c_0: true,
            ..Recurrent::new(config, 9, 3)
        }
    }

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let problem = problem(Direction::Forward);
        let inputs = problem.random(2);
        let whole = run::<f64>(&problem, &inputs, Part { rows: 3, steps: 9 }).unwrap();
        let few = Part { rows: 2, steps: 4 };
        let some = run::<f64>(&problem, &inputs, few).unwrap();
        assert_eq!(some.output, part(&whole.output, [9, 3], few));
    }

    #[test]
    fn rows_are_independent_in_both_directions() {
        let problem = problem(Direction::Bidirectional);
        let inputs = problem.random(2);
        let whole = run::<f64>(&problem, &inputs, Part { rows: 3, steps: 9 }).unwrap();
        let few = Part { rows: 1, steps: 9 };
        let some = run::<f64>(&problem, &inputs, few).unwrap();
        assert_eq!(some.output, part(&whole.output, [9, 3], few));
        let states = Part { rows: 1, steps: 4 };
        assert_eq!(some.c_n, part(&whole.c_n, [4, 3], states));
    }

    #[test]
    fn a_wrong_element_is_found() {
        let problem = problem(Direction::Bidirectional);
        let inputs = problem.random(5);
        let mut got = problem.truth(&inputs).unwrap();
        for tensor in got.values_mut() {
            if let Data::F64(values) = &tensor.data {
                tensor.data = Data::F32(values.iter().map(|&value| value as f32).collect());
            }
        }
        assert!(check(&problem, &inputs, &got).unwrap().unwrap() < 1e-6);
        if let Data::F32(values) = &mut got.get_mut("c_n").unwrap().data {
            values[7] += 0.01;
        }
        assert_eq!(
            check(&problem, &inputs, &got).unwrap().unwrap_err().name,
            "c_n"
        );
    }
}
