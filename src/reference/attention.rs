//! The meaning of [`Attention`](crate::Attention).
//!
//! Query `i` of batch row `b` and head `h` gives key `j` the score
//!
//! ```text
//! s = scale * query_i . key_j        key and value head h / (num_heads / num_kv_heads)
//! s = softcap * tanh(s / softcap)    with a softcap
//! s = s + bias[b, h, i, j]           with a bias; -1e30 or less masks the key
//! s = s - slope[h] * |i + offset - j|    with ALiBi slopes
//! ```
//!
//! and attends those keys that every mask lets through: `mask[b, h, i, j]`, `j < kv_lengths[b]`,
//! `j <= i + offset` (causal), `j >= i + offset - window_left`, `j <= i + offset + window_right`. The offset
//! is that of [`Causal`], 0 without one. A sink is one more score of each row, with no value. A key that is
//! masked reaches nothing, not even as NaN.
//!
//! Source: Vaswani et al. 2017; Press et al. 2022 (ALiBi); Gemma 2 2024 (softcap); Xiao et al. 2024 and
//! gpt-oss 2025 (sinks).

mod backward;

use std::ops::Range;

use super::Real;
use crate::Causal;
use crate::philox::{philox, threshold};

pub use backward::{Gradients, backward, backward_magnitude};

/// A bias of this or less masks, -infinity included.
const MASKING_BIAS: f32 = -1e30;

/// A tensor that broadcasts to `[batch, num_heads, q_len, kv_len]`: each axis of `shape` is 1 or the full
/// length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Broadcast<'a, T> {
    /// Its own shape.
    pub shape: [usize; 4],
    /// Row-major.
    pub values: &'a [T],
}

impl<T: Copy> Broadcast<'_, T> {
    /// Where the element of `[b, h, i, j]` lies in `values`.
    pub fn index(&self, b: usize, h: usize, i: usize, j: usize) -> usize {
        let axes = self.shape.iter().zip([b, h, i, j]);
        axes.fold(0, |index, (&len, at)| {
            index * len + if len == 1 { 0 } else { at }
        })
    }

    /// The element of `[b, h, i, j]`.
    pub fn get(&self, b: usize, h: usize, i: usize, j: usize) -> T {
        self.values[self.index(b, h, i, j)]
    }
}

/// Which weights are dropped: those whose word of noise is below the threshold of `probability`
/// ([`philox`](crate::philox)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Of an element to be dropped; at 1 none is kept.
    pub probability: f32,
    /// The key of the noise.
    pub seed: u64,
}

impl Dropout {
    /// What the weight of key `j` is multiplied by: 0, or `1 / (1 - probability)`. `head` counts the heads of
    /// all batch rows.
    fn factor(&self, head: usize, i: usize, j: usize) -> f64 {
        let counter = [j as u32 / 4, i as u32, head as u32, 0];
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let kept = philox(counter, key)[j % 4] >= threshold(self.probability);
        match kept && self.probability < 1.0 {
            true => 1.0 / (1.0 - f64::from(self.probability)),
            false => 0.0,
        }
    }
}

/// The numbers of a problem. Tensors are contiguous, `[batch, heads, seq_len, dim]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem<'a> {
    /// Independent problems.
    pub batch: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Queries per head.
    pub q_len: usize,
    /// Keys per head.
    pub kv_len: usize,
    /// Length of queries and keys.
    pub head_dim: usize,
    /// Length of values.
    pub value_dim: usize,
    /// Factor of the scores; in f64, so that the truth has `1 / sqrt(head_dim)` itself.
    pub scale: f64,
    /// Bound of the scaled scores.
    pub softcap: Option<f64>,
    /// Where the diagonal lies; bottom-right means `kv_lengths[b] - q_len` where there are lengths.
    pub causal: Causal,
    /// Keys that a query may look back from the diagonal.
    pub window_left: Option<u32>,
    /// Keys that a query may look ahead of the diagonal.
    pub window_right: Option<u32>,
    /// Of the weights, after the softmax.
    pub dropout: Option<Dropout>,
    /// Number of the first batch row in the noise of the dropout: packed sequences are problems of their own.
    pub first_batch: usize,
    /// Added to the scores.
    pub bias: Option<Broadcast<'a, f32>>,
    /// False where a key may not be attended.
    pub mask: Option<Broadcast<'a, bool>>,
    /// `[batch]`: keys of each batch row; at most `kv_len` count.
    pub kv_lengths: Option<&'a [u32]>,
    /// `[num_heads]`: how much a score falls with each key away from the diagonal.
    pub alibi_slopes: Option<&'a [f32]>,
    /// `[num_heads]`: one more score of each row.
    pub sinks: Option<&'a [f32]>,
}

impl Problem<'_> {
    /// Every query attends every key, with a scale of `1 / sqrt(head_dim)`.
    pub fn plain(
        batch: usize,
        num_heads: usize,
        num_kv_heads: usize,
        q_len: usize,
        kv_len: usize,
        head_dim: usize,
        value_dim: usize,
    ) -> Self {
        Self {
            batch,
            num_heads,
            num_kv_heads,
            q_len,
            kv_len,
            head_dim,
            value_dim,
            scale: (head_dim as f64).sqrt().recip(),
            softcap: None,
            causal: Causal::No,
            window_left: None,
            window_right: None,
            dropout: None,
            first_batch: 0,
            bias: None,
            mask: None,
            kv_lengths: None,
            alibi_slopes: None,
            sinks: None,
        }
    }

    /// Batch row, head and query of every row, in order.
    fn rows(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let Self {
            batch,
            num_heads,
            q_len,
            ..
        } = *self;
        let heads = (0..batch).flat_map(move |b| (0..num_heads).map(move |h| [b, h]));
        heads.flat_map(move |[b, h]| (0..q_len).map(move |i| [b, h, i]))
    }

    /// Number of query `[b, h, i]` among all.
    fn query(&self, [b, h, i]: [usize; 3]) -> usize {
        (b * self.num_heads + h) * self.q_len + i
    }

    /// Number of the first key and value among all that the heads of `[b, h, _]` read.
    fn first_key(&self, [b, h, _]: [usize; 3]) -> usize {
        let kv_head = h / (self.num_heads / self.num_kv_heads);
        (b * self.num_kv_heads + kv_head) * self.kv_len
    }

    /// How many keys batch row `b` has.
    fn keys(&self, b: usize) -> usize {
        self.kv_lengths
            .map_or(self.kv_len, |lengths| self.kv_len.min(lengths[b] as usize))
    }

    /// The key on the diagonal of query `i`.
    fn diagonal(&self, b: usize, i: usize) -> i64 {
        let offset = self.causal.offset(self.q_len as u32, self.keys(b) as u32);
        i as i64 + offset.unwrap_or(0)
    }

    /// The keys between the bounds that length, diagonal and window set.
    fn range(&self, b: usize, i: usize) -> Range<usize> {
        let (keys, diagonal) = (self.keys(b) as i64, self.diagonal(b, i));
        let (mut start, mut end) = (0, keys);
        if self.causal != Causal::No {
            end = end.min(diagonal + 1);
        }
        if let Some(right) = self.window_right {
            end = end.min(diagonal + i64::from(right) + 1);
        }
        if let Some(left) = self.window_left {
            start = start.max(diagonal - i64::from(left));
        }
        let end = end.max(0);
        start.min(end) as usize..end as usize
    }

    /// Whether neither mask nor bias keeps the key away.
    fn is_visible(&self, [b, h, i]: [usize; 3], j: usize) -> bool {
        let masked = self.mask.is_some_and(|mask| !mask.get(b, h, i, j));
        let biased_away = |bias: Broadcast<f32>| bias.get(b, h, i, j) <= MASKING_BIAS;
        !masked && !self.bias.is_some_and(biased_away)
    }

    /// The score of a product of query and key, and its derivative by the scaled product.
    fn score<R: Real>(&self, [b, h, i]: [usize; 3], j: usize, product: R) -> (R, R) {
        let mut score = R::from_f64(self.scale) * product;
        let mut derivative = R::ONE;
        if let Some(softcap) = self.softcap.map(R::from_f64) {
            let tanh = (score / softcap).tanh();
            score = softcap * tanh;
            derivative = R::ONE - tanh * tanh;
        }
        if let Some(bias) = self.bias {
            score += R::from_f64(bias.get(b, h, i, j).into());
        }
        if let Some(slopes) = self.alibi_slopes {
            let distance = (self.diagonal(b, i) - j as i64).abs();
            score += -(R::from_f64(slopes[h].into()) * R::from_f64(distance as f64));
        }
        (score, derivative)
    }
}

/// `output` `[batch, num_heads, q_len, value_dim]` and `log_sum_exp` `[batch, num_heads, q_len]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Output<R> {
    /// The weighted means of the values.
    pub output: Vec<R>,
    /// The logarithm of each row's sum of exponentials; that of the sink alone, or -infinity, without a key.
    pub log_sum_exp: Vec<R>,
}

/// A key that a query attends.
struct Attended<R> {
    /// Its number in the head.
    key: usize,
    /// Its share of the softmax.
    weight: R,
    /// What dropout multiplies the weight by; 1 without dropout.
    kept: R,
    /// Derivative of the score by the scaled product of query and key.
    derivative: R,
}

/// The softmax of one query.
struct Softmax<R> {
    /// In order of their number; masked ones are not among them.
    keys: Vec<Attended<R>>,
    /// The sink's share; 0 without a sink.
    sink: R,
    log_sum_exp: R,
}

impl<R: Real> Softmax<R> {
    fn new(problem: &Problem, row: [usize; 3], query: &[R], key: &[R]) -> Self {
        let [b, h, i] = row;
        let dim = problem.head_dim;
        let query_i = &query[problem.query(row) * dim..][..dim];
        let key_h = &key[problem.first_key(row) * dim..][..problem.kv_len * dim];

        // pass 1: scores and their maximum
        let visible = |&j: &usize| problem.is_visible(row, j);
        let scores: Vec<(usize, (R, R))> = problem
            .range(b, i)
            .filter(visible)
            .map(|j| {
                let product = dot(query_i, &key_h[j * dim..][..dim]);
                (j, problem.score(row, j, product))
            })
            .collect();
        let sink = problem.sinks.map(|sinks| R::from_f64(sinks[h].into()));
        let all = scores.iter().map(|&(_, (score, _))| score).chain(sink);
        let maximum = all.clone().fold(R::NEG_INFINITY, R::max);
        if all.clone().all(|score| score == R::NEG_INFINITY) {
            return Self {
                keys: Vec::new(),
                sink: R::ZERO,
                log_sum_exp: R::NEG_INFINITY,
            };
        }

        // pass 2: exponentials and their sum
        let sum = all.fold(R::ZERO, |sum, score| sum + (score - maximum).exp());
        let weight = |score: R| (score - maximum).exp() / sum;
        let head = (problem.first_batch + b) * problem.num_heads + h;
        let kept = |j| problem.dropout.map_or(1.0, |drop| drop.factor(head, i, j));
        let keys = scores
            .into_iter()
            .map(|(key, (score, derivative))| Attended {
                key,
                weight: weight(score),
                kept: R::from_f64(kept(key)),
                derivative,
            });
        Self {
            keys: keys.collect(),
            sink: sink.map_or(R::ZERO, weight),
            log_sum_exp: maximum + sum.ln(),
        }
    }
}

/// `softmax(scores) value`, one row at a time.
///
/// # Panics
/// If a tensor is shorter than the problem says, or the heads do not divide.
pub fn attention<R: Real>(problem: &Problem, query: &[R], key: &[R], value: &[R]) -> Output<R> {
    let rows = problem.batch * problem.num_heads * problem.q_len;
    let mut output = Vec::with_capacity(rows * problem.value_dim);
    let mut log_sum_exp = Vec::with_capacity(rows);
    for row in problem.rows() {
        let (mean, logarithm) = attention_row(problem, row, query, key, value);
        output.extend(mean);
        log_sum_exp.push(logarithm);
    }
    Output {
        output,
        log_sum_exp,
    }
}

/// One row of [`attention`], that of `[batch row, head, query]`: `[value_dim]` of the output, and log_sum_exp.
pub fn attention_row<R: Real>(
    problem: &Problem,
    row: [usize; 3],
    query: &[R],
    key: &[R],
    value: &[R],
) -> (Vec<R>, R) {
    let softmax = Softmax::new(problem, row, query, key);
    let first = problem.first_key(row);
    // pass 3: weighted mean of the values; 0 of no values
    let mut mean = vec![R::ZERO; problem.value_dim];
    for attended in &softmax.keys {
        let value_j = &value[(first + attended.key) * problem.value_dim..];
        add_scaled(&mut mean, attended.weight * attended.kept, value_j);
    }
    (mean, softmax.log_sum_exp)
}

/// The softmax itself, `[batch, num_heads, q_len, kv_len]`, before dropout; 0 where a key is masked.
pub fn weights<R: Real>(problem: &Problem, query: &[R], key: &[R]) -> Vec<R> {
    let rows = problem.rows().flat_map(|row| {
        let mut weights = vec![R::ZERO; problem.kv_len];
        for attended in Softmax::new(problem, row, query, key).keys {
            weights[attended.key] = attended.weight;
        }
        weights
    });
    rows.collect()
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).fold(R::ZERO, |sum, (&a, &b)| sum + a * b)
}

/// `sum += factor * x`, for as many elements as `sum` has.
fn add_scaled<R: Real>(sum: &mut [R], factor: R, x: &[R]) {
    for (sum, &x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}
