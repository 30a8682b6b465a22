"""Known answers for attention: writes attention_<case>.safetensors beside this script.

The answer is the formula of `attention` below in f64. Where PyTorch's scaled_dot_product_attention
knows the case, the script stops unless the two agree.

    inputs   query [batch, num_heads, q_len, head_dim]
             key   [batch, num_kv_heads, kv_len, head_dim]
             value [batch, num_kv_heads, kv_len, value_dim]
    outputs  output      [batch, num_heads, q_len, value_dim]
             log_sum_exp [batch, num_heads, q_len], natural logarithm
"""

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from store import random, rounded, save, seed

# batch, num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim; then the options that are not the default
CASES = {
    "plain": ((2, 3, 3, 5, 7, 8, 8), {}),
    "gqa": ((2, 6, 2, 5, 9, 12, 12), {}),
    "gqa_causal_ragged": ((1, 2, 1, 65, 129, 80, 16), {"causal": "top-left"}),
    "causal_top_left": ((1, 2, 2, 7, 7, 8, 8), {"causal": "top-left"}),
    "causal_bottom_right": ((2, 2, 2, 5, 11, 8, 8), {"causal": "bottom-right"}),
    "causal_bottom_right_more_queries": ((2, 2, 1, 11, 5, 8, 8), {"causal": "bottom-right"}),
    "causal_offset_negative": ((1, 2, 2, 9, 11, 8, 8), {"causal": "-3"}),
    "causal_offset_positive": ((1, 2, 2, 9, 17, 8, 8), {"causal": "5"}),
    "value_dim_differs": ((1, 2, 2, 6, 10, 40, 24), {}),
    "head_dim_1": ((2, 2, 2, 5, 9, 1, 1), {}),
    "head_dim_odd": ((2, 3, 3, 5, 9, 7, 13), {}),
    "custom_scale": ((1, 2, 2, 6, 10, 8, 8), {"scale": 0.1875}),
    "large_scores": ((1, 2, 2, 8, 12, 16, 16), {}),
    "single_query": ((1, 4, 2, 1, 33, 16, 16), {}),
}


def causal_offset(causal, q_len, kv_len):
    """Query i may attend key j when j <= i + offset; None lets every query attend every key."""
    named = {None: None, "top-left": 0, "bottom-right": kv_len - q_len}
    return named[causal] if causal in named else int(causal)


def attention(query, key, value, scale, offset):
    """softmax(scale * query key^T, masked) value, its log_sum_exp, and the softmax."""
    heads_per_kv_head = query.shape[1] // key.shape[1]
    # query head h reads key/value head h / heads_per_kv_head
    key = key.repeat_interleave(heads_per_kv_head, dim=1)
    value = value.repeat_interleave(heads_per_kv_head, dim=1)
    score = scale * query @ key.transpose(-1, -2)
    i, j = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]
    visible = torch.ones_like(i + j, dtype=torch.bool) if offset is None else j <= i + offset
    score = score.masked_fill(~visible, -torch.inf)
    log_sum_exp = torch.logsumexp(score, dim=-1)
    # a row without a key has log_sum_exp -inf, weights 0 and output 0
    weights = torch.where(visible, torch.exp(score - log_sum_exp[..., None]), 0.0)
    return weights @ value, log_sum_exp, weights, visible


def inputs(name, shape):
    batch, num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim = shape
    query = random(batch, num_heads, q_len, head_dim, spread=1.2, outliers=2)
    key = random(batch, num_kv_heads, kv_len, head_dim, spread=1.2, outliers=2)
    value = random(batch, num_kv_heads, kv_len, value_dim, outliers=2)
    if name == "large_scores":
        # head 0: each row has scores around one number between -10,000 and 10,000, and close enough to share
        query[:, 0, :, 0] = torch.tensor([-200.0, -150, -100, -20, 20, 100, 150, 200])
        key[:, 0, :, 0] = 200.0
        # head 1: scores of some thousands, far apart, so that almost every row takes a single key
        query[:, 1] = rounded(50.0 * query[:, 1])
        key[:, 1] = rounded(50.0 * key[:, 1])
    return query, key, value


def check_softmax_is_telling(name, weights, visible):
    """Neither flat nor one-hot: half of the rows have a largest weight well between 1/keys and 1."""
    if name == "large_scores":
        weights = weights[:, :1]
    keys = visible.sum(dim=-1)
    rows = keys >= 4
    largest = weights[:, :, rows].amax(dim=-1)
    assert (largest * keys[rows]).median() > 1.5, f"{name}: softmax is flat"
    assert largest.median() < 0.9, f"{name}: softmax is one-hot"


def check_with_pytorch(name, query, key, value, options, visible, output, tolerance):
    """scaled_dot_product_attention must agree; it leaves a row without a key to us."""
    same = {"scale": options.get("scale"), "enable_gqa": query.shape[1] != key.shape[1]}
    masks = {None: {}, "top-left": {"is_causal": True}}
    mask = masks.get(options.get("causal"), {"attn_mask": visible})
    answers = [scaled_dot_product_attention(query, key, value, **mask, **same)]
    if options.get("causal") == "bottom-right" and query.shape[2] <= key.shape[2]:
        # PyTorch's own idea of bottom-right, beside our mask
        bottom_right = causal_lower_right(query.shape[2], key.shape[2])
        answers.append(scaled_dot_product_attention(query, key, value, bottom_right, **same))
    rows = visible.any(dim=-1)
    for answer in answers:
        error = (answer - output)[:, :, rows].abs().max().item()
        assert error <= tolerance, f"{name}: differs from PyTorch by {error}"
    assert (output[:, :, ~rows] == 0).all()


def main():
    for case, (shape, options) in CASES.items():
        name = f"attention_{case}"
        seed(name)
        query, key, value = inputs(case, shape)
        scale = options.get("scale", query.shape[-1] ** -0.5)
        offset = causal_offset(options.get("causal"), query.shape[2], key.shape[2])
        output, log_sum_exp, weights, visible = attention(query, key, value, scale, offset)
        check_softmax_is_telling(case, weights, visible)
        # the rounding of a score in f64 grows with the score
        largest_score = log_sum_exp[log_sum_exp.isfinite()].abs().max().item()
        check_with_pytorch(case, query, key, value, options, visible, output, 1e-12 * max(1.0, largest_score / 1000))
        save(
            name,
            {"query": query, "key": key, "value": value},
            {"output": output, "log_sum_exp": log_sum_exp},
            {"op": "attention"} | options,
        )


main()
