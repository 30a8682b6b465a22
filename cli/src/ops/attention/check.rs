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

/// A row of queries is a problem of its own: the mask lets query `i` attend key `j` when `j <= i + offset`,
/// which for the only query of a problem, number 0, is the mask of offset `i + offset`.
fn check_rows(
    p: &reference::Problem,
    [query, key, value]: [&[f32]; 3],
    got: &Output<f32>,
    sample: &[usize],
) -> Result<f64, Box<Difference>> {
    let (mut truth, mut yardstick, mut rows) = (empty(), empty(), empty());
    for &row in sample {
        let (head, i) = (row / p.q_len, row % p.q_len);
        let kv_head = head / p.num_heads * p.num_kv_heads
            + head % p.num_heads / (p.num_heads / p.num_kv_heads);
        let one = reference::Problem {
            batch: 1,
            num_heads: 1,
            num_kv_heads: 1,
            q_len: 1,
            causal: p.causal.map(|offset| offset + i as i64),
            ..*p
        };
        let query = &query[row * p.head_dim..][..p.head_dim];
        let key = &key[kv_head * p.kv_len * p.head_dim..][..p.kv_len * p.head_dim];
        let value = &value[kv_head * p.kv_len * p.value_dim..][..p.kv_len * p.value_dim];
        let exact = reference::attention(&one, &f64s(query), &f64s(key), &f64s(value));
        truth.output.extend(exact.output);
        truth.log_sum_exp.extend(exact.log_sum_exp);
        let single = reference::attention(&one, query, key, value);
        yardstick.output.extend(single.output);
        yardstick.log_sum_exp.extend(single.log_sum_exp);
        let found = &got.output[row * p.value_dim..][..p.value_dim];
        rows.output.extend_from_slice(found);
        rows.log_sum_exp.push(got.log_sum_exp[row]);
    }
    let shape = [1, 1, sample.len(), p.value_dim];
    agree(&shape, &rows, &truth, &yardstick).map_err(|mut difference| {
        let row = sample[difference.index[2]];
        let head = row / p.q_len;
        let place = [head / p.num_heads, head % p.num_heads, row % p.q_len];
        difference.index[..3].copy_from_slice(&place);
        difference
    })
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
