"""Known answers for attention: writes attention_<case>.safetensors beside this script.

The answer is the formula of `attention` below in f64, its gradients are those of autograd. Where PyTorch's
scaled_dot_product_attention or flex_attention knows the case, the script stops unless the two agree.

    inputs   query [batch, num_heads, q_len, head_dim]
             key   [batch, num_kv_heads, kv_len, head_dim]
             value [batch, num_kv_heads, kv_len, value_dim]
             bias, mask: rank 1 to 4, broadcast to [batch, num_heads, q_len, kv_len], aligned right
             kv_lengths [batch]; alibi_slopes, sinks [num_heads]
             grad_output, shaped as output
    outputs  output      [batch, num_heads, q_len, value_dim]
             log_sum_exp [batch, num_heads, q_len], natural logarithm
             weights     [batch, num_heads, q_len, kv_len], before dropout
             grad_query, grad_key, grad_value, grad_bias, grad_sinks, shaped as their inputs
"""

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from philox import kept
from store import random, rounded, save, seed

# batch, num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim; then the options that are not the default
FORWARD = {
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

SMALL = (2, 4, 2, 5, 7, 6, 4)
SCORES = (2, 4, 5, 7)

# with gradients; then the shapes of random tensors, or the tensors themselves
GRADIENT = {
    "grad_plain": ((2, 3, 3, 5, 7, 6, 6), {}, {}),
    "grad_gqa": (SMALL, {"weights": True}, {}),
    "grad_scale": (SMALL, {"scale": -0.625}, {}),
    "grad_causal_top_left": (SMALL, {"causal": "top-left"}, {}),
    "grad_causal_bottom_right": (SMALL, {"causal": "bottom-right"}, {}),
    "grad_rows_without_keys": ((2, 2, 1, 9, 5, 6, 4), {"causal": "bottom-right", "weights": True}, {}),
    "grad_window_left": (SMALL, {"window_left": 1}, {}),
    "grad_window_right": (SMALL, {"window_right": 2}, {}),
    "grad_window": ((1, 2, 2, 9, 9, 6, 4), {"window_left": 3, "window_right": 1}, {}),
    "grad_softcap": (SMALL, {"softcap": 0.75, "weights": True}, {}),
    "grad_dropout": (SMALL, {"dropout": 0.25, "seed": 0x0123456789ABCDEF, "weights": True}, {}),
    "grad_bias": (SMALL, {}, {"bias": SCORES}),
    "grad_bias_of_keys": (SMALL, {}, {"bias": (7,)}),
    # a bias that all keys share changes the sink's share only
    "grad_bias_of_queries": (SMALL, {}, {"bias": (5, 1), "sinks": (4,)}),
    "grad_bias_of_heads_and_keys": (SMALL, {}, {"bias": (4, 1, 7)}),
    "grad_bias_of_batch_and_queries": (SMALL, {}, {"bias": (2, 1, 5, 1), "sinks": (4,)}),
    "grad_bias_masks": (SMALL, {}, {"bias": SCORES}),
    "grad_mask": (SMALL, {}, {"mask": SCORES}),
    "grad_mask_of_keys": (SMALL, {}, {"mask": (2, 1, 1, 7)}),
    "grad_mask_of_pairs": (SMALL, {}, {"mask": (5, 7)}),
    "grad_kv_lengths": ((3, 4, 2, 5, 7, 6, 4), {}, {"kv_lengths": [7, 4, 0]}),
    "grad_alibi": (SMALL, {}, {"alibi_slopes": (4,)}),
    "grad_sinks": (SMALL, {"weights": True}, {"sinks": (4,)}),
    # a window and lengths: a cache filled to different ends
    "grad_cache": (
        SMALL,
        {"causal": "bottom-right", "window_left": 2},
        {"kv_lengths": [7, 5]},
    ),
    "grad_cache_alibi": (
        (2, 2, 2, 4, 9, 6, 4),
        {"causal": "bottom-right"},
        {"kv_lengths": [6, 9], "alibi_slopes": (2,)},
    ),
    "grad_softcap_bias_sinks": (SMALL, {"softcap": 1.25}, {"bias": (4, 5, 7), "sinks": (4,)}),
    "grad_dropout_causal": (SMALL, {"causal": "2", "dropout": 0.375, "seed": 7}, {}),
    "grad_sinks_alone": (SMALL, {"causal": "-3", "window_left": 1, "weights": True}, {"sinks": (4,)}),
    # as gpt-oss, Gemma 2 and T5 use it
    "grad_sinks_window": ((1, 4, 1, 9, 9, 6, 4), {"causal": "top-left", "window_left": 3}, {"sinks": (4,)}),
    "grad_softcap_window": (
        (1, 4, 2, 9, 9, 6, 4),
        {"causal": "top-left", "window_left": 4, "softcap": 2.5, "scale": 0.5},
        {},
    ),
    "grad_relative_bias": ((2, 2, 2, 6, 6, 6, 4), {"scale": 0.5}, {"bias": (1, 2, 6, 6), "kv_lengths": [4, 6]}),
    "grad_everything": (
        SMALL,
        {
            "causal": "2",
            "scale": 0.75,
            "softcap": 2.0,
            "window_left": 4,
            "window_right": 0,
            "dropout": 0.25,
            "seed": 42,
            "weights": True,
        },
        {"bias": (4, 5, 7), "mask": (2, 1, 5, 7), "kv_lengths": [7, 6], "alibi_slopes": (4,), "sinks": (4,)},
    ),
}


def causal_offset(causal, q_len, kv_len):
    """Query i may attend key j when j <= i + offset; None lets every query attend every key."""
    named = {None: None, "top-left": 0, "bottom-right": kv_len - q_len}
    return named[causal] if causal in named else int(causal)


def masks(shape, options, tensors):
    """Which key each query may attend, and its distance from the diagonal; [batch or 1, heads or 1, q_len, kv_len]."""
    batch, _, _, q_len, kv_len, _, _ = shape
    lengths = tensors.get("kv_lengths")
    keys = torch.full((1,), kv_len) if lengths is None else lengths.long()
    offset = torch.tensor([causal_offset(options.get("causal"), q_len, int(n)) or 0 for n in keys])
    i, j = torch.arange(q_len)[:, None], torch.arange(kv_len)[None, :]
    diagonal = i + offset[:, None, None, None]
    visible = j < keys[:, None, None, None]
    if "causal" in options:
        visible = visible & (j <= diagonal)
    if "window_left" in options:
        visible = visible & (j >= diagonal - options["window_left"])
    if "window_right" in options:
        visible = visible & (j <= diagonal + options["window_right"])
    if "mask" in tensors:
        visible = visible & tensors["mask"]
    if "bias" in tensors:
        visible = visible & (tensors["bias"] > -1e30)
    return torch.broadcast_to(visible, torch.broadcast_shapes(visible.shape, (1, 1, q_len, kv_len))), diagonal - j


def position_bias(tensors, distance):
    """What the slopes add to the scores."""
    return -tensors["alibi_slopes"][:, None, None] * distance.abs() if "alibi_slopes" in tensors else 0.0


def attention(query, key, value, scale, options, tensors, visible, distance):
    """softmax(scores, masked) value, its log_sum_exp, and the softmax."""
    heads_per_kv_head = query.shape[1] // key.shape[1]
    # query head h reads key/value head h / heads_per_kv_head
    key = key.repeat_interleave(heads_per_kv_head, dim=1)
    value = value.repeat_interleave(heads_per_kv_head, dim=1)
    score = scale * query @ key.transpose(-1, -2)
    if "softcap" in options:
        score = options["softcap"] * torch.tanh(score / options["softcap"])
    score = score + tensors.get("bias", 0.0) + position_bias(tensors, distance)
    score = score.masked_fill(~visible, -torch.inf)
    all_scores = score
    if "sinks" in tensors:
        sinks = tensors["sinks"][None, :, None, None].expand(*score.shape[:3], 1)
        all_scores = torch.cat([score, sinks], dim=-1)
    log_sum_exp = torch.logsumexp(all_scores, dim=-1)
    # a row without a key has log_sum_exp -inf, weights 0 and output 0
    weights = torch.where(visible, torch.exp(score - log_sum_exp[..., None]), 0.0)
    dropped = weights
    if "dropout" in options:
        keep = kept(weights.shape, options["dropout"], options["seed"])
        dropped = torch.where(keep, weights / (1 - options["dropout"]), 0.0)
    return dropped @ value, log_sum_exp, weights


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


def further_inputs(name, wanted):
    """Random tensors of the wanted shapes; lengths are given."""
    tensors = {}
    for tensor, shape in wanted.items():
        if tensor == "kv_lengths":
            tensors[tensor] = torch.tensor(shape, dtype=torch.int32)
        elif tensor == "mask":
            tensors[tensor] = torch.rand(shape) < 0.7
        elif tensor == "alibi_slopes":
            tensors[tensor] = 0.5 ** torch.arange(1, shape[0] + 1, dtype=torch.float64)
        else:
            tensors[tensor] = random(*shape)
    if name == "grad_mask":
        # one row may attend nothing
        tensors["mask"][1, 2, 3] = False
    if name == "grad_bias_masks":
        # all that counts as masked, beside what does not; one row may attend nothing
        tensors["bias"][0, 0, :, 1::2] = -torch.inf
        tensors["bias"][0, 1, :, ::3] = rounded(torch.tensor(-1e30))
        tensors["bias"][1, 2, :, 4:] = torch.finfo(torch.float32).min
        tensors["bias"][1, 3, 2] = -torch.inf
        tensors["bias"][1, 0, :, 2] = -1e4
    return tensors


def check_softmax_is_telling(name, weights, visible):
    """Neither flat nor one-hot: half of the rows have a largest weight well between 1/keys and 1."""
    if name == "large_scores":
        weights = weights[:, :1]
    keys = torch.broadcast_to(visible, weights.shape).sum(dim=-1)
    rows = keys >= 4
    if rows.any():
        largest = weights.amax(dim=-1)[rows]
        # a sink takes its share, and a softcap flattens
        assert (largest * keys[rows]).median() > 1.3, f"{name}: softmax is flat"
        assert largest.median() < 0.9, f"{name}: softmax is one-hot"


def answers_of_pytorch(query, key, value, scale, options, tensors, visible, distance):
    """The outputs of PyTorch's own functions, of those that know the case. They leave rows without a key to us."""
    if "dropout" in options:
        return []
    same = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if "softcap" in options:
        return [softcapped_by_pytorch(query, key, value, options, tensors, visible, distance, same)]
    if "sinks" in tensors:
        # a sink is a key of zeros with a bias and a value of zeros
        key, value = (torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2) for x in (key, value))
    plain = not tensors and not {"window_left", "window_right"} & options.keys()
    if plain and options.get("causal") is None:
        mask = {}
    elif plain and options["causal"] == "top-left":
        mask = {"is_causal": True}
    elif plain:
        mask = {"attn_mask": visible}
    else:
        bias = tensors.get("bias", 0.0) + position_bias(tensors, distance)
        bias = torch.broadcast_to(torch.as_tensor(bias, dtype=torch.float64), (*query.shape[:3], visible.shape[-1]))
        bias = bias.masked_fill(~visible, -torch.inf)
        if "sinks" in tensors:
            sinks = tensors["sinks"][None, :, None, None].expand(*bias.shape[:3], 1)
            bias = torch.cat([bias, sinks], dim=-1)
        mask = {"attn_mask": bias}
    answers = [scaled_dot_product_attention(query, key, value, **mask, **same)]
    if plain and options.get("causal") == "bottom-right" and query.shape[2] <= key.shape[2]:
        # PyTorch's own idea of bottom-right, beside our mask
        bottom_right = causal_lower_right(query.shape[2], key.shape[2])
        answers.append(scaled_dot_product_attention(query, key, value, bottom_right, **same))
    return answers


def softcapped_by_pytorch(query, key, value, options, tensors, visible, distance, same):
    """flex_attention, which is told what to do with each score; on the CPU it has no gradients."""
    query, key, value = (x.detach() for x in (query, key, value))
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    shape = (*query.shape[:3], visible.shape[-1])
    bias = torch.as_tensor(tensors.get("bias", 0.0) + position_bias(tensors, distance), dtype=torch.float64)
    bias = torch.broadcast_to(bias, shape)
    visible = torch.broadcast_to(visible, shape)
    softcap = torch.tensor(options["softcap"], dtype=torch.float64)

    def modify(score, b, h, i, j):
        score = softcap * torch.tanh(score / softcap)
        return torch.where(visible[b, h, i, j], score + bias[b, h, i, j], -torch.inf)

    output, log_sum_exp = flex_attention(query, key, value, score_mod=modify, return_lse=True, **same)
    if "sinks" in tensors:
        # the sink's share, taken off afterwards
        output = output * torch.sigmoid(log_sum_exp - tensors["sinks"][:, None])[..., None]
    return output


def check_with_pytorch(name, answers, output, rows, tolerance):
    """PyTorch's functions must agree on every row with a key."""
    for answer in answers:
        error = (answer - output)[rows].abs().max().item()
        assert error <= tolerance, f"{name}: differs from PyTorch by {error}"
    assert (output[~rows] == 0).all()


def gradients(output, grad_output, leaves):
    return torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def answer(case, shape, options, wanted, with_gradients):
    name = f"attention_{case}"
    seed(name)
    query, key, value = inputs(case, shape)
    tensors = further_inputs(case, wanted)
    given = {"query": query, "key": key, "value": value} | tensors
    if with_gradients:
        grad_output = given["grad_output"] = random(*query.shape[:3], value.shape[3])
    learned = [x for x in ("query", "key", "value", "bias", "sinks") if x in given and with_gradients]
    for tensor in learned:
        given[tensor].requires_grad_()

    scale = options.get("scale", query.shape[-1] ** -0.5)
    visible, distance = masks(shape, options, tensors)
    output, log_sum_exp, weights = attention(query, key, value, scale, options, tensors, visible, distance)
    check_softmax_is_telling(case, weights, visible)
    # the rounding of a score in f64 grows with the score
    largest_score = log_sum_exp[log_sum_exp.isfinite()].abs().max().item()
    tolerance = 1e-12 * max(1.0, largest_score / 1000)
    theirs = answers_of_pytorch(query, key, value, scale, options, tensors, visible, distance)
    rows = torch.broadcast_to(visible.any(dim=-1), output.shape[:3])
    check_with_pytorch(case, theirs, output, rows, tolerance)

    answers = {"output": output, "log_sum_exp": log_sum_exp}
    if options.get("weights"):
        answers["weights"] = weights
    if with_gradients:
        leaves = [given[tensor] for tensor in learned]
        grads = gradients(output, grad_output, leaves)
        # of what PyTorch does with a row without a key nothing may come back
        loss = grad_output * rows[..., None]
        for other in (other for other in theirs if other.requires_grad):
            for tensor, ours, grad in zip(learned, grads, gradients(other, loss, leaves)):
                error = (ours - grad).abs().max().item()
                assert error <= 1e-11, f"{name}: gradient of {tensor} differs from PyTorch by {error}"
        answers |= {f"grad_{tensor}": grad for tensor, grad in zip(learned, grads)}
        assert all(grad.isfinite().all() and grad.abs().max() > 0.01 for grad in grads), f"{name}: trivial"
        options = options | {"grad": True}
    flags = {key: str(value).lower() if value is True else value for key, value in options.items()}
    save(name, given, answers, {"op": "attention"} | flags)


def main():
    for case, (shape, options) in FORWARD.items():
        answer(case, shape, options, {}, with_gradients=False)
    for case, (shape, options, tensors) in GRADIENT.items():
        answer(case, shape, options, tensors, with_gradients=True)


main()
