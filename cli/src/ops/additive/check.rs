//! The results against the f64 reference, in full or in a sample.

use gatefold::reference::additive_attention::{self as reference, Inputs, Problem};
use gatefold::reference::compare::{Difference, Tolerance, compare, compare_with};
use gatefold::reference::{Real, convert};

use super::{Additive, INPUTS, RESULTS};
use crate::error::Result;
use crate::tensors::{Tensors, floats};

/// Elements of scores that the reference may take: some seconds on one core.
const AFFORDABLE: usize = 40_000_000;

/// A sample of rows is never smaller.
const FEWEST_ROWS: usize = 16;

/// Which part of a problem is looked at. A batch row is a problem of its own but for `grad_v`, a query one but
/// for the gradients of keys and values.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    batches: Vec<usize>,
    queries: Vec<usize>,
}

impl Sample {
    fn of(problem: &Additive) -> Self {
        let [batch, q_len, kv_len, dim, value_dim] = problem.extents();
        let passes = if problem.grad { 3 } else { 1 };
        let each = passes * kv_len * (dim + value_dim / 16);
        let affordable = AFFORDABLE / each.max(1);
        let all = |count: usize| (0..count).collect::<Vec<_>>();
        if batch * q_len <= affordable {
            let (batches, queries) = (all(batch), all(q_len));
            return Self { batches, queries };
        }
        if q_len <= affordable {
            let batches = spread(batch, affordable / q_len);
            let queries = all(q_len);
            return Self { batches, queries };
        }
        Self {
            batches: spread(batch, 1),
            queries: spread(q_len, affordable.max(FEWEST_ROWS)),
        }
    }

    /// Whether the result is the same in the part as in the whole.
    fn holds(&self, name: &str, problem: &Additive) -> bool {
        let [batch, q_len, ..] = problem.extents();
        let all_queries = self.queries.len() == q_len;
        match name {
            "grad_key" | "grad_value" => all_queries,
            "grad_v" => all_queries && self.batches.len() == batch,
            _ => true,
        }
    }

    /// The part of a tensor whose axes are batch, one of `kind`, and `width` elements.
    fn part<T: Copy>(&self, values: &[T], lens: &Lens, kind: Axis, width: usize) -> Vec<T> {
        let row = |b: &usize, i: usize| -> Vec<T> {
            let len = if kind == Axis::Queries {
                lens.q_len
            } else {
                lens.kv_len
            };
            values[(b * len + i) * width..][..width].to_vec()
        };
        let rows: Vec<usize> = match kind {
            Axis::Queries => self.queries.clone(),
            Axis::Keys => (0..lens.kv_len).collect(),
        };
        let of_batch = |b| rows.iter().flat_map(move |&i| row(b, i));
        self.batches.iter().flat_map(of_batch).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Axis {
    Queries,
    Keys,
}

struct Lens {
    q_len: usize,
    kv_len: usize,
}

/// At most `count` of `0..len`, at least one, the last among them, hitting every place of a tile.
fn spread(len: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, len.max(1)).min(len);
    let each = len / count.max(1);
    let mut sample: Vec<usize> = (0..count).map(|k| k * each + k * 7919 % each).collect();
    if let Some(last) = sample.last_mut() {
        *last = len - 1;
    }
    sample
}

pub fn check(
    problem: &Additive,
    inputs: &Tensors,
    got: &Tensors,
) -> Result<Result<f64, Box<Difference>>> {
    let sample = Sample::of(problem);
    let given = problem.given(inputs)?;
    let whole = problem.reference(&given);
    let [_, q_len, kv_len, dim, value_dim] = problem.extents();
    let lens = Lens { q_len, kv_len };
    let kind = |name: &str| match name.trim_start_matches("grad_") {
        "key" | "value" => Axis::Keys,
        _ => Axis::Queries,
    };
    let width = |name: &str| match name.trim_start_matches("grad_") {
        "query" | "key" => dim,
        "log_sum_exp" => 1,
        "weights" => kv_len,
        _ => value_dim,
    };
    let part = |tensors: &Tensors, name: &str| -> Result<Vec<f32>> {
        let values = floats(tensors, name)?;
        Ok(match name {
            "v" | "grad_v" => values.to_vec(),
            _ => sample.part(values, &lens, kind(name), width(name)),
        })
    };
    let mut tensors = Vec::new();
    for name in INPUTS {
        tensors.push(part(inputs, name)?);
    }
    let grad_output = match problem.grad {
        true => part(inputs, "grad_output")?,
        false => vec![],
    };

    // the part as a problem: its mask in full, since its queries are no longer a range
    let rows = sample.batches.iter();
    let pairs = rows.flat_map(|&b| sample.queries.iter().map(move |&i| (b, i)));
    let allowed: Vec<bool> = pairs
        .flat_map(|(b, i)| (0..kv_len).map(move |j| (b, i, j)))
        .map(|(b, i, j)| whole.is_allowed(b, i, j))
        .collect();
    let (batch, q_len) = (sample.batches.len(), sample.queries.len());
    let small = Problem {
        batch,
        q_len,
        kv_lengths: None,
        mask: Some(reference::Mask {
            shape: [batch, q_len, kv_len],
            values: &allowed,
        }),
        ..whole
    };
    let exact: Vec<Vec<f64>> = tensors.iter().map(|tensor| convert(tensor)).collect();
    let truth = results(problem, &small, &exact, &convert::<f64>(&grad_output));
    let yardstick = results(problem, &small, &tensors, &grad_output);

    let mut worst = 0.0_f64;
    for (i, name) in RESULTS.into_iter().enumerate() {
        if !problem.wants(name) || !sample.holds(name, problem) {
            continue;
        }
        let shape = match (name, kind(name)) {
            ("grad_v", _) => vec![dim],
            ("log_sum_exp", _) => vec![batch, q_len],
            (_, Axis::Queries) => vec![batch, q_len, width(name)],
            (_, Axis::Keys) => vec![batch, kv_len, width(name)],
        };
        let got = part(got, name)?;
        let ((truth, magnitude), (yardstick, _)) = (&truth[i], &yardstick[i]);
        let agreement = match magnitude {
            None => compare(name, &shape, &got, truth, yardstick, Tolerance::FORWARD),
            Some(magnitude) => {
                let tolerance = Tolerance::GRADIENT;
                compare_with(name, &shape, &got, truth, magnitude, yardstick, tolerance)
            }
        };
        match agreement {
            Ok(agreement) => worst = worst.max(agreement.error),
            Err(mut difference) => {
                if difference.index.len() > 1 {
                    difference.index[0] = sample.batches[difference.index[0]];
                    if kind(name) == Axis::Queries {
                        difference.index[1] = sample.queries[difference.index[1]];
                    }
                }
                return Ok(Err(Box::new(difference)));
            }
        }
    }
    Ok(Ok(worst))
}

/// All results in the order of `RESULTS`, those of the gradients with their magnitudes.
fn results<R: Real>(
    problem: &Additive,
    small: &Problem<'_>,
    inputs: &[Vec<R>],
    grad_output: &[R],
) -> Vec<(Vec<R>, Option<Vec<R>>)> {
    let inputs = Inputs {
        query: &inputs[0],
        key: &inputs[1],
        value: &inputs[2],
        v: &inputs[3],
    };
    let forward = reference::additive_attention(small, inputs);
    let forward = [forward.output, forward.log_sum_exp, forward.weights];
    let mut results: Vec<_> = forward.into_iter().map(|values| (values, None)).collect();
    if problem.grad {
        let (grad, magnitude) = reference::additive_attention_backward(small, inputs, grad_output);
        results.extend([
            (grad.query, Some(magnitude.query)),
            (grad.key, Some(magnitude.key)),
            (grad.value, Some(magnitude.value)),
            (grad.v, Some(magnitude.v)),
        ]);
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Problem as _;
    use crate::tensors::{Data, Tensor};
    use gatefold::{AdditiveAttentionConfig, AdditiveAttentionMask, AdditiveAttentionShape};

    fn problem(batch: u32, q_len: u32, kv_len: u32, dim: u32) -> Additive {
        Additive {
            shape: AdditiveAttentionShape::new(batch, q_len, kv_len)
                .with_mask(AdditiveAttentionMask::FULL)
                .with_kv_lengths(),
            config: AdditiveAttentionConfig {
                dim,
                value_dim: Some(3),
                ..Default::default()
            },
            weights: true,
            grad: true,
        }
    }

    #[test]
    fn samples_stay_inside_and_shrink_with_the_cost() {
        let full = Sample::of(&problem(3, 5, 7, 11));
        assert_eq!((full.batches.len(), full.queries.len()), (3, 5));
        let batches = Sample::of(&problem(64, 64, 1000, 1000));
        assert_eq!(batches.queries.len(), 64.min(batches.queries.len()));
        let queries = Sample::of(&problem(2, 5000, 5000, 1000));
        assert_eq!((queries.batches.len(), queries.queries.len()), (1, 16));
        assert_eq!(queries.queries.last(), Some(&4999));
        assert_eq!(spread(0, 3), Vec::<usize>::new());
    }

    /// The reference's own results pass; one wrong element of any of them does not.
    #[test]
    fn any_wrong_element_is_found() {
        let problem = problem(3, 5, 7, 11);
        let inputs = problem.random(1);
        let mut got = problem.truth(&inputs).unwrap();
        for tensor in got.values_mut() {
            let shape = tensor.shape.clone();
            *tensor = Tensor::f32(&shape, tensor.clone().into_f32());
        }
        assert!(check(&problem, &inputs, &got).unwrap().unwrap() < 1e-6);
        for name in RESULTS {
            let mut wrong = got.clone();
            let tensor = wrong.get_mut(name).unwrap();
            let Data::F32(values) = &mut tensor.data else {
                unreachable!()
            };
            let at = values
                .iter()
                .position(|x| x.is_finite() && *x != 0.0)
                .unwrap();
            values[at] *= 1.01;
            let difference = check(&problem, &inputs, &wrong).unwrap().unwrap_err();
            assert_eq!(difference.name, name);
        }
    }
}
