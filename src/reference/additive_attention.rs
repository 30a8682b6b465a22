//! The meaning of [`AdditiveAttention`](crate::AdditiveAttention).

use super::Real;

/// The numbers of a problem. Tensors are contiguous.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem<'a> {
    /// Independent problems.
    pub batch: usize,
    /// Queries of each.
    pub q_len: usize,
    /// Keys of each.
    pub kv_len: usize,
    /// Length of queries, keys and `v`.
    pub dim: usize,
    /// Length of values.
    pub value_dim: usize,
    /// Which keys a query may attend.
    pub mask: Option<Mask<'a>>,
    /// How many keys each batch row has, if not `kv_len`: `[batch]`.
    pub kv_lengths: Option<&'a [i64]>,
}

/// `true`: may attend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask<'a> {
    /// Of batch, queries and keys; 1 where it is broadcast.
    pub shape: [usize; 3],
    /// Row-major.
    pub values: &'a [bool],
}

impl Problem<'_> {
    /// Whether query `i` of batch row `b` may attend key `j`.
    pub fn is_allowed(&self, b: usize, i: usize, j: usize) -> bool {
        let within = self
            .kv_lengths
            .is_none_or(|lengths| (j as i64) < lengths[b]);
        let unmasked = self.mask.is_none_or(|mask| {
            let [batch, queries, keys] = mask.shape;
            let at = |i, len| if len == 1 { 0 } else { i };
            mask.values[(at(b, batch) * queries + at(i, queries)) * keys + at(j, keys)]
        });
        within && unmasked
    }
}

/// The tensors that both directions read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inputs<'a, R> {
    /// `[batch, q_len, dim]`
    pub query: &'a [R],
    /// `[batch, kv_len, dim]`
    pub key: &'a [R],
    /// `[batch, kv_len, value_dim]`
    pub value: &'a [R],
    /// `[dim]`
    pub v: &'a [R],
}

/// What a forward call gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Output<R> {
    /// `[batch, q_len, value_dim]`, the weighted means of the values.
    pub output: Vec<R>,
    /// `[batch, q_len]`, the logarithm of each row's sum of exponentials.
    pub log_sum_exp: Vec<R>,
    /// `[batch, q_len, kv_len]`, the softmax.
    pub weights: Vec<R>,
}

/// What a backward call gives, each in the shape of its input.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients<R> {
    /// `[batch, q_len, dim]`
    pub query: Vec<R>,
    /// `[batch, kv_len, dim]`
    pub key: Vec<R>,
    /// `[batch, kv_len, value_dim]`
    pub value: Vec<R>,
    /// `[dim]`
    pub v: Vec<R>,
}

/// `softmax(score) value` with `score_ij = sum_d v_d tanh(query_id + key_jd)`, one row at a time.
pub fn additive_attention<R: Real>(problem: &Problem<'_>, inputs: Inputs<'_, R>) -> Output<R> {
    let Problem {
        batch,
        q_len,
        kv_len,
        dim,
        value_dim,
        ..
    } = *problem;
    let mut output = Vec::with_capacity(batch * q_len * value_dim);
    let mut log_sum_exp = Vec::with_capacity(batch * q_len);
    let mut weights = Vec::with_capacity(batch * q_len * kv_len);
    for row in 0..batch * q_len {
        let (b, i) = (row / q_len, row % q_len);
        let query_i = &inputs.query[row * dim..][..dim];
        let allowed: Vec<usize> = (0..kv_len)
            .filter(|&j| problem.is_allowed(b, i, j))
            .collect();

        // pass 1: scores and their maximum
        let score = |&j: &usize| {
            let key_j = &inputs.key[(b * kv_len + j) * dim..][..dim];
            let terms = query_i.iter().zip(key_j).zip(inputs.v);
            terms.fold(R::ZERO, |sum, ((&q, &k), &v)| sum + v * (q + k).tanh())
        };
        let scores: Vec<R> = allowed.iter().map(score).collect();
        let maximum = scores.iter().copied().fold(R::NEG_INFINITY, R::max);

        // pass 2: exponentials and their sum
        let exponentials: Vec<R> = scores.iter().map(|&s| (s - maximum).exp()).collect();
        let sum = exponentials.iter().fold(R::ZERO, |sum, &e| sum + e);

        // pass 3: weights, and the weighted mean of the values; 0 of no values
        let mut weights_i = vec![R::ZERO; kv_len];
        let mut output_i = vec![R::ZERO; value_dim];
        for (&j, &exponential) in allowed.iter().zip(&exponentials) {
            weights_i[j] = exponential / sum;
            let value_j = &inputs.value[(b * kv_len + j) * value_dim..][..value_dim];
            for (out, &value) in output_i.iter_mut().zip(value_j) {
                *out += weights_i[j] * value;
            }
        }
        output.extend(output_i);
        weights.extend(weights_i);
        log_sum_exp.push(if allowed.is_empty() {
            R::NEG_INFINITY
        } else {
            maximum + sum.ln()
        });
    }
    Output {
        output,
        log_sum_exp,
        weights,
    }
}

/// The gradients of `sum(output * grad_output)`, and the same sums over absolute values: the magnitudes that
/// errors are measured by ([`compare_with`](super::compare::compare_with)).
pub fn additive_attention_backward<R: Real>(
    problem: &Problem<'_>,
    inputs: Inputs<'_, R>,
    grad_output: &[R],
) -> (Gradients<R>, Gradients<R>) {
    let Problem {
        batch,
        q_len,
        kv_len,
        dim,
        value_dim,
        ..
    } = *problem;
    let weights = additive_attention(problem, inputs).weights;
    let zeros = || Gradients {
        query: vec![R::ZERO; batch * q_len * dim],
        key: vec![R::ZERO; batch * kv_len * dim],
        value: vec![R::ZERO; batch * kv_len * value_dim],
        v: vec![R::ZERO; dim],
    };
    let (mut grad, mut magnitude) = (zeros(), zeros());
    for row in 0..batch * q_len {
        let (b, i) = (row / q_len, row % q_len);
        let grad_output_i = &grad_output[row * value_dim..][..value_dim];
        let weights_i = &weights[row * kv_len..][..kv_len];
        let allowed: Vec<usize> = (0..kv_len)
            .filter(|&j| problem.is_allowed(b, i, j))
            .collect();

        // pass 1: gradients of the weights and values, and their mean under the softmax
        let mut grad_weight = vec![(R::ZERO, R::ZERO); kv_len];
        let (mut mean, mut mean_magnitude) = (R::ZERO, R::ZERO);
        for &j in &allowed {
            let value_at = (b * kv_len + j) * value_dim;
            for (c, &g) in grad_output_i.iter().enumerate() {
                let value = inputs.value[value_at + c];
                grad_weight[j].0 += g * value;
                grad_weight[j].1 += abs(g * value);
                grad.value[value_at + c] += weights_i[j] * g;
                magnitude.value[value_at + c] += weights_i[j] * abs(g);
            }
            mean += weights_i[j] * grad_weight[j].0;
            mean_magnitude += weights_i[j] * grad_weight[j].1;
        }

        // pass 2: gradients of the scores, through tanh to query, key and v
        for &j in &allowed {
            let grad_score = weights_i[j] * (grad_weight[j].0 - mean);
            let score_magnitude = weights_i[j] * (grad_weight[j].1 + mean_magnitude);
            let (query_at, key_at) = (row * dim, (b * kv_len + j) * dim);
            for d in 0..dim {
                let tanh = (inputs.query[query_at + d] + inputs.key[key_at + d]).tanh();
                let slope = inputs.v[d] * (R::ONE - tanh * tanh);
                grad.query[query_at + d] += grad_score * slope;
                grad.key[key_at + d] += grad_score * slope;
                grad.v[d] += grad_score * tanh;
                magnitude.query[query_at + d] += score_magnitude * abs(slope);
                magnitude.key[key_at + d] += score_magnitude * abs(slope);
                magnitude.v[d] += score_magnitude * abs(tanh);
            }
        }
    }
    (grad, magnitude)
}

fn abs<R: Real>(x: R) -> R {
    R::max(x, -x)
}
