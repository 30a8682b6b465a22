//! The gradients of [`attention`](super::attention), and how large their terms are.

use super::{Problem, Softmax, add_scaled, dot};
use crate::reference::Real;

/// A gradient for each input, in its input's own shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients<R> {
    /// `[batch, num_heads, q_len, head_dim]`
    pub query: Vec<R>,
    /// `[batch, num_kv_heads, kv_len, head_dim]`: the sum over the query heads of the group.
    pub key: Vec<R>,
    /// `[batch, num_kv_heads, kv_len, value_dim]`: likewise.
    pub value: Vec<R>,
    /// The bias's own shape: the sum over what it broadcasts to, 0 where masked. Empty without a bias.
    pub bias: Vec<R>,
    /// `[num_heads]`, or empty without sinks.
    pub sinks: Vec<R>,
}

/// The gradients of `sum(output * grad_output)`.
///
/// With `w` the softmax, `f` the factors of dropout and `p_sink` the sink's share of a row:
///
/// ```text
/// dw_j = f_j * grad_output . value_j        delta = sum_j w_j dw_j
/// ds_j = w_j (dw_j - delta)                 the gradient of the bias
/// dz_j = scale * ds_j * (1 - tanh²)         the last factor with a softcap only
/// grad_query = sum_j dz_j key_j             grad_key_j = sum_i dz_j query_i
/// grad_value_j = sum_i w_j f_j grad_output  grad_sink = sum_i -p_sink delta
/// ```
///
/// Source: Dao et al. 2022, *FlashAttention*, appendix B.2.
///
/// # Panics
/// If a tensor is shorter than the problem says, or the heads do not divide.
pub fn backward<R: Real>(
    problem: &Problem,
    query: &[R],
    key: &[R],
    value: &[R],
    grad_output: &[R],
) -> Gradients<R> {
    let softmax = |row| Softmax::new(problem, row, query, key);
    sums(
        problem,
        softmax,
        [query, key, value, grad_output],
        [R::from_f64(problem.scale), -R::ONE],
    )
}

/// The same sums over absolute values: row scales for
/// [`compare_with`](crate::reference::compare::compare_with).
///
/// # Panics
/// If a tensor is shorter than the problem says, or the heads do not divide.
pub fn backward_magnitude(
    problem: &Problem,
    query: &[f64],
    key: &[f64],
    value: &[f64],
    grad_output: &[f64],
) -> Gradients<f64> {
    let softmax = |row| Softmax::new(problem, row, query, key);
    let absolute = [query, key, value, grad_output]
        .map(|tensor| tensor.iter().map(|x| x.abs()).collect::<Vec<_>>());
    sums(
        problem,
        softmax,
        absolute.each_ref().map(Vec::as_slice),
        [problem.scale.abs(), 1.0],
    )
}

/// `sign` is that of delta: -1 for gradients, 1 for their magnitudes.
fn sums<R: Real>(
    problem: &Problem,
    softmax: impl Fn([usize; 3]) -> Softmax<R>,
    [query, key, value, grad_output]: [&[R]; 4],
    [scale, sign]: [R; 2],
) -> Gradients<R> {
    let Problem {
        head_dim,
        value_dim,
        ..
    } = *problem;
    let zeros = |len| vec![R::ZERO; len];
    let keys = problem.batch * problem.num_kv_heads * problem.kv_len;
    let mut grad = Gradients {
        query: zeros(problem.batch * problem.num_heads * problem.q_len * head_dim),
        key: zeros(keys * head_dim),
        value: zeros(keys * value_dim),
        bias: zeros(problem.bias.map_or(0, |bias| bias.shape.iter().product())),
        sinks: zeros(problem.sinks.map_or(0, |_| problem.num_heads)),
    };
    for row in problem.rows() {
        let [b, h, i] = row;
        let softmax = softmax(row);
        let (at, first) = (problem.query(row), problem.first_key(row));
        let query_i = &query[at * head_dim..][..head_dim];
        let grad_output_i = &grad_output[at * value_dim..][..value_dim];

        // pass 1: gradients of the weights, and their mean
        let grad_weight: Vec<R> = softmax
            .keys
            .iter()
            .map(|a| a.kept * dot(grad_output_i, &value[(first + a.key) * value_dim..]))
            .collect();
        let terms = softmax.keys.iter().zip(&grad_weight);
        let delta = terms.fold(R::ZERO, |sum, (a, &g)| sum + a.weight * g);

        // pass 2: gradients of the scores, and of all that a score is made of
        for (a, &g) in softmax.keys.iter().zip(&grad_weight) {
            let j = first + a.key;
            let grad_score = a.weight * (g + sign * delta);
            if let Some(bias) = problem.bias {
                grad.bias[bias.index(b, h, i, a.key)] += grad_score;
            }
            let grad_product = scale * grad_score * a.derivative;
            let grad_query_i = &mut grad.query[at * head_dim..][..head_dim];
            add_scaled(grad_query_i, grad_product, &key[j * head_dim..]);
            let grad_key_j = &mut grad.key[j * head_dim..][..head_dim];
            add_scaled(grad_key_j, grad_product, query_i);
            let grad_value_j = &mut grad.value[j * value_dim..][..value_dim];
            add_scaled(grad_value_j, a.weight * a.kept, grad_output_i);
        }
        if problem.sinks.is_some() {
            grad.sinks[h] += sign * softmax.sink * delta;
        }
    }
    grad
}
