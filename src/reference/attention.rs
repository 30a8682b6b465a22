//! The meaning of [`Attention`](crate::Attention).

use super::Real;

/// The numbers of a problem. Tensors are contiguous, `[batch, heads, seq_len, dim]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
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
    /// Query `i` attends key `j` when `j <= i + offset`; `None`: always.
    pub causal: Option<i64>,
}

/// `output` `[batch, num_heads, q_len, value_dim]` and `log_sum_exp` `[batch, num_heads, q_len]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Output<R> {
    /// The weighted means of the values.
    pub output: Vec<R>,
    /// The logarithm of each row's sum of exponentials.
    pub log_sum_exp: Vec<R>,
}

/// `softmax(scale * query keyᵀ + mask) value`, one row at a time.
pub fn attention<R: Real>(problem: &Problem, query: &[R], key: &[R], value: &[R]) -> Output<R> {
    let Problem {
        batch,
        num_heads,
        num_kv_heads,
        q_len,
        kv_len,
        head_dim,
        value_dim,
        ..
    } = *problem;
    let scale = R::from_f64(problem.scale);
    let mut output = Vec::with_capacity(batch * num_heads * q_len * value_dim);
    let mut log_sum_exp = Vec::with_capacity(batch * num_heads * q_len);
    for bh in 0..batch * num_heads {
        let kv_head = bh / num_heads * num_kv_heads + bh % num_heads / (num_heads / num_kv_heads);
        let query_h = &query[bh * q_len * head_dim..][..q_len * head_dim];
        let key_h = &key[kv_head * kv_len * head_dim..][..kv_len * head_dim];
        let value_h = &value[kv_head * kv_len * value_dim..][..kv_len * value_dim];
        for i in 0..q_len {
            let keys = problem.causal.map_or(kv_len, |offset| {
                (i as i64 + offset + 1).clamp(0, kv_len as i64) as usize
            });
            let query_i = &query_h[i * head_dim..][..head_dim];

            // pass 1: scores and their maximum
            let score: Vec<R> = key_h
                .chunks_exact(head_dim)
                .take(keys)
                .map(|key_j| scale * dot(query_i, key_j))
                .collect();
            let maximum = score.iter().copied().fold(R::NEG_INFINITY, R::max);

            // pass 2: exponentials and their sum
            let weight: Vec<R> = score.iter().map(|&s| (s - maximum).exp()).collect();
            let sum = weight.iter().fold(R::ZERO, |sum, &w| sum + w);

            // pass 3: weighted mean of the values; 0 of no values
            let mut row = vec![R::ZERO; value_dim];
            for (&w, value_j) in weight.iter().zip(value_h.chunks_exact(value_dim)) {
                for (out, &v) in row.iter_mut().zip(value_j) {
                    *out += w / sum * v;
                }
            }
            output.extend(row);
            log_sum_exp.push(if keys == 0 {
                R::NEG_INFINITY
            } else {
                maximum + sum.ln()
            });
        }
    }
    Output {
        output,
        log_sum_exp,
    }
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).fold(R::ZERO, |sum, (&a, &b)| sum + a * b)
}
