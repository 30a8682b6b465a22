"""Known answers for additive attention: writes additive_attention_<case>.safetensors beside this script.

The answer is the formula of `attention` below in f64, its gradients are PyTorch's autograd.

    inputs   query [batch, q_len, dim], key [batch, kv_len, dim], value [batch, kv_len, value_dim], v [dim],
             grad_output [batch, q_len, value_dim]; mask (broadcasts to [batch, q_len, kv_len]),
             kv_lengths [batch] in some
    outputs  output [batch, q_len, value_dim], log_sum_exp [batch, q_len], natural logarithm,
             weights [batch, q_len, kv_len], grad_query, grad_key, grad_value, grad_v
"""

import torch

from store import random, rounded, save, seed

# batch, q_len, kv_len, dim, value_dim; shape of the mask; lengths
CASES = {
    "plain": ((2, 5, 7, 8, 8), None, None),
    "value_dim_differs": ((1, 6, 10, 40, 24), None, None),
    "one_of_each": ((1, 1, 1, 1, 1), None, None),
    "single_query": ((3, 1, 33, 12, 5), None, None),
    "mask": ((2, 5, 9, 7, 6), (2, 5, 9), None),
    "mask_of_keys": ((2, 5, 9, 7, 6), (9,), None),
    "mask_of_queries": ((2, 5, 9, 7, 6), (5, 1), None),
    "mask_of_batch": ((3, 4, 9, 7, 6), (3, 1, 9), None),
    "kv_lengths": ((4, 5, 9, 7, 6), None, (9, 0, 1, 5)),
    "mask_and_kv_lengths": ((3, 5, 9, 7, 6), (1, 5, 9), (4, 9, 0)),
    "large_opposite_terms": ((1, 6, 8, 10, 4), None, None),
    "saturated": ((1, 6, 8, 10, 4), None, None),
}


def attention(query, key, value, v, allowed):
    """softmax(v . tanh(query_i + key_j), masked) value, its log_sum_exp, and the softmax."""
    score = torch.tanh(query[:, :, None, :] + key[:, None, :, :]) @ v
    score = score.masked_fill(~allowed, -torch.inf)
    rows = allowed.any(dim=-1, keepdim=True)
    # a row without a key has log_sum_exp -inf, weights 0, output 0 and gradients 0
    finite = torch.where(rows, score, 0.0)
    weights = torch.where(allowed, torch.softmax(finite, dim=-1), 0.0)
    return weights @ value, torch.logsumexp(score.detach(), dim=-1), weights


def inputs(case, shape):
    batch, q_len, kv_len, dim, value_dim = shape
    spread = 12.0 if case == "saturated" else 0.9
    query = random(batch, q_len, dim, spread=spread)
    key = random(batch, kv_len, dim, spread=spread)
    value = random(batch, kv_len, value_dim, outliers=1)
    v = random(dim, spread=1.5 * dim**-0.25)
    if case == "large_opposite_terms":
        # their sums are ordinary, each alone is far in the saturation
        query[:, ::2, ::3] = rounded(30.0 + query[:, ::2, ::3])
        key[:, ::3, ::3] = rounded(-30.0 + key[:, ::3, ::3])
    return query, key, value, v


def main():
    for case, (shape, mask_shape, lengths) in CASES.items():
        name = f"additive_attention_{case}"
        seed(name)
        batch, q_len, kv_len, _, value_dim = shape
        learned = dict(zip(("query", "key", "value", "v"), inputs(case, shape)))
        grad_output = random(batch, q_len, value_dim)
        extra = {"grad_output": grad_output}
        allowed = torch.ones(batch, q_len, kv_len, dtype=torch.bool)
        if mask_shape is not None:
            extra["mask"] = torch.rand(mask_shape) < 0.6
            allowed &= extra["mask"]
        if lengths is not None:
            extra["kv_lengths"] = torch.tensor(lengths, dtype=torch.int32)
            allowed &= torch.arange(kv_len) < extra["kv_lengths"][:, None, None]
        for tensor in learned.values():
            tensor.requires_grad_()
        output, log_sum_exp, weights = attention(*learned.values(), allowed)
        grads = torch.autograd.grad(output, list(learned.values()), grad_output)
        assert all(grad.isfinite().all() for grad in grads), name
        if kv_len > 1:
            largest = weights.amax(dim=-1)[allowed.sum(dim=-1) > 1]
            assert 1.2 / kv_len < largest.median() < 0.95, f"{name}: the softmax is flat or one-hot"
        save(
            name,
            learned | extra,
            {"output": output, "log_sum_exp": log_sum_exp, "weights": weights}
            | {f"grad_{key}": grad for key, grad in zip(learned, grads)},
            {"op": "additive-attention", "weights": "true", "grad": "true"},
        )


main()
