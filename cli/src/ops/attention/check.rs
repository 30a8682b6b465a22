//! The result against the f64 reference, in full or in a sample of rows.

use gatefold::Variant;
use gatefold::reference::attention::{
    Gradients, Output, Problem, attention_row, backward, backward_magnitude,
};
use gatefold::reference::compare::{Difference, Tolerance, compare, compare_with};
use gatefold::reference::convert;

use super::Attention;
use super::segments::{self, Results, Segment, pick, results};
use crate::error::Result;
use crate::tensors::{Tensors, floats};

/// Multiply-adds that the reference may take: about a second on one core.
const AFFORDABLE: usize = 300_000_000;

/// A sample is never smaller.
const FEWEST_ROWS: usize = 16;

pub fn check(
    problem: &Attention,
    variant: Variant,
    inputs: &Tensors,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let segments = segments::segments(problem, inputs)?;
    let small = segments::small(problem, inputs)?;
    let p = segments.iter().map(|segment| {
        let sliced = segment.sliced(problem, &small);
        cost(&segment.problem(problem, &small, &sliced))
    });
    let cost: usize = p.sum();
    // a backward pass has seven products for the two of a forward one
    let affordable = if problem.grad {
        8 * AFFORDABLE
    } else {
        AFFORDABLE
    };
    let own = Results {
        output: floats(got, "output")?.to_vec(),
        log_sum_exp: floats(got, "log_sum_exp")?.to_vec(),
        ..Default::default()
    };
    if let (true, [segment]) = (cost > affordable, &segments[..]) {
        let sliced = segment.sliced(problem, &small);
        let p = segment.problem(problem, &small, &sliced);
        let each = cost / (p.batch * p.num_heads * p.q_len);
        let sample = sample(
            p.batch * p.num_heads * p.q_len,
            (AFFORDABLE / each).max(FEWEST_ROWS),
        );
        let forward = check_rows(&p, variant, segment, &own, &sample);
        return match (forward, problem.grad) {
            (Ok(error), true) => {
                Ok(check_first_head(&p, variant, segment, got)?.map(|other| error.max(other)))
            }
            (forward, _) => Ok(forward),
        };
    }
    check_all(problem, variant, inputs, got, own)
}

fn cost(p: &Problem) -> usize {
    p.batch * p.num_heads * p.q_len * p.kv_len * (p.head_dim + p.value_dim)
}

/// Name, shape; result, truth, row scale, yardstick.
type Judged = (
    &'static str,
    Vec<usize>,
    Vec<f32>,
    Vec<f64>,
    Vec<f64>,
    Vec<f32>,
);

fn judge(variant: Variant, judged: Vec<Judged>) -> Result<f64, Box<Difference>> {
    let mut worst = 0.0_f64;
    for (name, shape, got, truth, magnitude, yardstick) in judged {
        let tolerance = match name.starts_with("grad_") {
            true => Tolerance::GRADIENT,
            false => Tolerance::FORWARD,
        };
        let tolerance = tolerance.of(variant);
        let agreement = compare_with(
            name, &shape, &got, &truth, &magnitude, &yardstick, tolerance,
        )?;
        worst = worst.max(agreement.error);
    }
    Ok(worst)
}

fn check_all(
    problem: &Attention,
    variant: Variant,
    inputs: &Tensors,
    got: &Tensors,
    own: Results<f32>,
) -> Result<Result<f64, Box<Difference>>> {
    let truth = results::<f64>(problem, inputs, problem.grad.then_some(backward))?;
    let yardstick = results::<f32>(problem, inputs, problem.grad.then_some(backward))?;
    let [.., output_dims] = problem.dims();
    let forward = |name, dims: Vec<usize>, got: Vec<f32>, truth: Vec<f64>, yardstick| {
        (name, dims, got, truth.clone(), truth, yardstick)
    };
    let mut judged: Vec<Judged> = vec![
        forward(
            "output",
            output_dims,
            own.output,
            truth.output,
            yardstick.output,
        ),
        forward(
            "log_sum_exp",
            problem.log_sum_exp_dims(),
            own.log_sum_exp,
            truth.log_sum_exp,
            yardstick.log_sum_exp,
        ),
    ];
    if let Some(chosen) = problem.weights {
        let weights = floats(got, "weights")?.to_vec();
        let dims = problem.weights_dims(chosen);
        judged.push(forward(
            "weights",
            dims,
            weights,
            truth.weights,
            yardstick.weights,
        ));
    }
    if let (Some(truth), Some(yardstick)) = (truth.gradients, yardstick.gradients) {
        let magnitude = results::<f64>(problem, inputs, Some(magnitudes))?;
        let magnitude = magnitude.gradients.map(flat).unwrap_or_default();
        let (truth, yardstick) = (flat(truth), flat(yardstick));
        for (name, dims) in problem.gradients() {
            let got = floats(got, name)?.to_vec();
            let own = (
                pick(name, &truth),
                pick(name, &magnitude),
                pick(name, &yardstick),
            );
            judged.push((name, dims, got, own.0, own.1, own.2));
        }
    }
    Ok(judge(variant, judged))
}

fn magnitudes(p: &Problem, q: &[f64], k: &[f64], v: &[f64], g: &[f64]) -> Gradients<f64> {
    backward_magnitude(p, q, k, v, g)
}

fn flat<R>(gradients: Gradients<R>) -> [Vec<R>; 5] {
    let Gradients {
        query,
        key,
        value,
        bias,
        sinks,
    } = gradients;
    [query, key, value, bias, sinks]
}

/// The gradients of the first key/value head of the first batch row: a problem of its own, where there is no
/// bias and nothing else that heads share.
fn check_first_head(
    p: &Problem,
    variant: Variant,
    segment: &Segment,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let group = p.num_heads / p.num_kv_heads;
    let one = Problem {
        batch: 1,
        num_heads: group,
        num_kv_heads: 1,
        ..*p
    };
    let rows = group * p.q_len;
    let lens = [
        rows * p.head_dim,
        p.kv_len * p.head_dim,
        p.kv_len * p.value_dim,
        rows * p.value_dim,
    ];
    let all = [
        &segment.query,
        &segment.key,
        &segment.value,
        &segment.grad_output,
    ];
    let parts: [&[f32]; 4] = std::array::from_fn(|i| &all[i][..lens[i]]);
    let [q, k, v, g] = parts.map(convert::<f64>);
    let truth = flat(backward(&one, &q, &k, &v, &g));
    let magnitude = flat(backward_magnitude(&one, &q, &k, &v, &g));
    let yardstick = flat(backward(&one, parts[0], parts[1], parts[2], parts[3]));
    let mut judged: Vec<Judged> = Vec::new();
    for (name, dims) in [
        ("grad_query", vec![1, group, p.q_len, p.head_dim]),
        ("grad_key", vec![1, 1, p.kv_len, p.head_dim]),
        ("grad_value", vec![1, 1, p.kv_len, p.value_dim]),
    ] {
        let got = floats(got, name)?[..dims.iter().product()].to_vec();
        let own = (
            pick(name, &truth),
            pick(name, &magnitude),
            pick(name, &yardstick),
        );
        judged.push((name, dims, got, own.0, own.1, own.2));
    }
    Ok(judge(variant, judged))
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
    p: &Problem,
    variant: Variant,
    segment: &Segment,
    got: &Results<f32>,
    sample: &[usize],
) -> Result<f64, Box<Difference>> {
    let (mut truth, mut yardstick, mut rows) = (empty(), empty(), empty());
    let inputs = [&segment.query, &segment.key, &segment.value];
    let [query, key, value] = inputs;
    let [exact_query, exact_key, exact_value] = inputs.map(|x| convert::<f64>(x));
    for &row in sample {
        let at = place(p, row);
        let exact = attention_row(p, at, &exact_query, &exact_key, &exact_value);
        truth.output.extend(exact.0);
        truth.log_sum_exp.push(exact.1);
        let single = attention_row(p, at, query, key, value);
        yardstick.output.extend(single.0);
        yardstick.log_sum_exp.push(single.1);
        let found = &got.output[row * p.value_dim..][..p.value_dim];
        rows.output.extend_from_slice(found);
        rows.log_sum_exp.push(got.log_sum_exp[row]);
    }
    let shape = [1, 1, sample.len(), p.value_dim];
    agree(variant, &shape, &rows, &truth, &yardstick).map_err(|mut difference| {
        let row = sample[difference.index[2]];
        difference.index[..3].copy_from_slice(&place(p, row));
        difference
    })
}

/// Batch row, head and query of a row.
fn place(p: &Problem, row: usize) -> [usize; 3] {
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
    variant: Variant,
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
        Tolerance::FORWARD.of(variant),
    )?;
    let log_sum_exp = compare(
        "log_sum_exp",
        &shape[..3],
        &got.log_sum_exp,
        &truth.log_sum_exp,
        &yardstick.log_sum_exp,
        Tolerance::FORWARD.of(variant),
    )?;
    Ok(output.error.max(log_sum_exp.error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Problem as _;
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
        let config = AttentionConfig {
            head_dim: 8,
            value_dim: Some(5),
            causal: Causal::Offset(-2),
            ..Default::default()
        };
        let call = Attention::plain(AttentionShape::new(2, 4, 2, 9, 13), config);
        let tensors = call.random(3);
        let small = segments::small(&call, &tensors).unwrap();
        let segments = segments::segments(&call, &tensors).unwrap();
        let sliced = segments[0].sliced(&call, &small);
        let p = segments[0].problem(&call, &small, &sliced);
        let mut got = results::<f32>(&call, &tensors, None).unwrap();
        let sample: Vec<usize> = (0..72).step_by(7).collect();
        assert!(check_rows(&p, Variant::Portable, &segments[0], &got, &sample).unwrap() < 1e-6);

        // row 49: batch row 1, head 1, query 4; between its neighbours nothing is looked at
        got.output[48 * 5] += 1.0;
        assert!(check_rows(&p, Variant::Portable, &segments[0], &got, &sample).is_ok());
        got.output[49 * 5 + 2] += 1.0;
        let difference =
            check_rows(&p, Variant::Portable, &segments[0], &got, &sample).unwrap_err();
        assert_eq!(difference.index, [1, 1, 4, 2]);
    }
}
