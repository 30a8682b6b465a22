//! The result against the f64 reference, in full or in a sample of rows.

use gatefold::reference::attention::{self as reference, Output};
use gatefold::reference::compare::{Difference, Tolerance, compare};
use gatefold::reference::convert;

use super::{Attention, INPUTS};
use crate::error::Result;
use crate::tensors::{Tensors, floats};

/// Multiply-adds that the reference may take: about a second on one core.
const AFFORDABLE: usize = 300_000_000;

/// A sample is never smaller.
const FEWEST_ROWS: usize = 16;

pub fn check(
    problem: &Attention,
    inputs: &Tensors,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let p = problem.reference();
    let [query, key, value] = INPUTS.map(|name| floats(inputs, name));
    let inputs = [query?, key?, value?];
    let got = Output {
        output: floats(got, "output")?.to_vec(),
        log_sum_exp: floats(got, "log_sum_exp")?.to_vec(),
    };
    let rows = p.batch * p.num_heads * p.q_len;
    let cost = p.kv_len * (p.head_dim + p.value_dim);
    if rows * cost <= AFFORDABLE {
        let truth = reference::attention(&p, &f64s(inputs[0]), &f64s(inputs[1]), &f64s(inputs[2]));
        let yardstick = reference::attention(&p, inputs[0], inputs[1], inputs[2]);
        let shape = [p.batch, p.num_heads, p.q_len, p.value_dim];
        return Ok(agree(&shape, &got, &truth, &yardstick));
    }
    let sample = sample(rows, (AFFORDABLE / cost).max(FEWEST_ROWS));
    Ok(check_rows(&p, inputs, &got, &sample))
}

fn f64s(values: &[f32]) -> Vec<f64> {
    convert(values)
}

/// `count` of `0..rows`, the first and the last among them, spread so that they hit every place of a tile.
fn sample(rows: usize, count: usize) -> Vec<usize> {
    let count = count.min(rows);
    let each = rows / count;
    let mut sample: Vec<usize> = (0..count).map(|k| k * each + k * 7919 % each).collect();
    sample[0] = 0;
    sample[count - 1] = rows - 1;
    sample
}

/// The rows of the sample only.
fn check_rows(
    p: &reference::Problem,
    inputs: [&[f32]; 3],
    got: &Output<f32>,
    sample: &[usize],
) -> Result<f64, Box<Difference>> {
    let (mut truth, mut yardstick, mut rows) = (empty(), empty(), empty());
    let [query, key, value] = inputs;
    let [exact_query, exact_key, exact_value] = inputs.map(f64s);
    for &row in sample {
        let at = place(p, row);
        let exact = reference::attention_row(p, at, &exact_query, &exact_key, &exact_value);
        truth.output.extend(exact.0);
        truth.log_sum_exp.push(exact.1);
        let single = reference::attention_row(p, at, query, key, value);
        yardstick.output.extend(single.0);
        yardstick.log_sum_exp.push(single.1);
        let found = &got.output[row * p.value_dim..][..p.value_dim];
        rows.output.extend_from_slice(found);
        rows.log_sum_exp.push(got.log_sum_exp[row]);
    }
    let shape = [1, 1, sample.len(), p.value_dim];
    agree(&shape, &rows, &truth, &yardstick).map_err(|mut difference| {
        let row = sample[difference.index[2]];
        difference.index[..3].copy_from_slice(&place(p, row));
        difference
    })
}

/// Batch row, head and query of a row.
fn place(p: &reference::Problem, row: usize) -> [usize; 3] {
    let head = row / p.q_len;
    [head / p.num_heads, head % p.num_heads, row % p.q_len]
}

fn empty<R>() -> Output<R> {
    Output {
        output: Vec::new(),
        log_sum_exp: Vec::new(),
    }
}

fn agree(
    shape: &[usize; 4],
    got: &Output<f32>,
    truth: &Output<f64>,
    yardstick: &Output<f32>,
) -> Result<f64, Box<Difference>> {
    let output = compare(
        "output",
        shape,
        &got.output,
        &truth.output,
        &yardstick.output,
        Tolerance::FORWARD,
    )?;
    let log_sum_exp = compare(
        "log_sum_exp",
        &shape[..3],
        &got.log_sum_exp,
        &truth.log_sum_exp,
        &yardstick.log_sum_exp,
        Tolerance::FORWARD,
    )?;
    Ok(output.error.max(log_sum_exp.error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Problem;
    use gatefold::{AttentionConfig, AttentionShape, Causal};

    #[test]
    fn samples_hold_both_ends_and_no_row_twice() {
        for (rows, count) in [(1, 1), (1, 16), (100, 16), (4096, 100), (1_000_000, 977)] {
            let sample = sample(rows, count);
            assert_eq!((sample[0], sample[sample.len() - 1]), (0, rows - 1));
            assert!(
                sample.windows(2).all(|pair| pair[0] < pair[1]),
                "{sample:?}"
            );
        }
    }

    #[test]
    fn sampled_rows_are_rows_of_the_whole() {
        let problem = Attention {
            shape: AttentionShape::new(2, 4, 2, 9, 13),
            config: AttentionConfig {
                head_dim: 8,
                value_dim: Some(5),
                causal: Causal::Offset(-2),
                ..Default::default()
            },
        };
        let p = problem.reference();
        let tensors = problem.random(3);
        let inputs = INPUTS.map(|name| floats(&tensors, name).unwrap());
        let mut got = reference::attention(&p, inputs[0], inputs[1], inputs[2]);
        let sample: Vec<usize> = (0..72).step_by(7).collect();
        assert!(check_rows(&p, inputs, &got, &sample).unwrap() < 1e-6);

        // row 49: batch row 1, head 1, query 4; between its neighbours nothing is looked at
        got.output[48 * 5] += 1.0;
        assert!(check_rows(&p, inputs, &got, &sample).is_ok());
        got.output[49 * 5 + 2] += 1.0;
        let difference = check_rows(&p, inputs, &got, &sample).unwrap_err();
        assert_eq!(difference.index, [1, 1, 4, 2]);
    }
}
