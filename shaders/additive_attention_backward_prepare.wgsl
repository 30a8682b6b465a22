// additive_attention_backward_prepare: what both roles of additive_attention_backward need to know
// of each query, and the small inputs beside it: every device has 8 storage bindings, not more.
//
//     delta_i = sum_c grad_output_ic output_ic
// Source: Dao et al. 2022 (FlashAttention), Alg. 4.
//
// Layout (row-major)
//     v            [dim]
//     kv_lengths   [batch]                     with has_lengths
//     output       [batch, q_len, value_dim]
//     grad_output  [batch, q_len, value_dim]
//     log_sum_exp  [batch, q_len]              bits; -infinity for a row that attends nothing
//     prepared     log_sum_exp * log2(e) and delta of each query [batch, q_len, 2], then v [dim],
//                  then the number of keys of each batch row [batch], as u32
// Grid        one invocation per query, element of v and batch row, in this order; folded to two
//             dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       nothing else
// Precision   f32; a row that attends nothing gets a log_sum that makes every weight 0, and delta 0
// Parts       common.wgsl

struct Params {
    dim: u32,
    value_dim: u32,
    kv_len: u32,
    num_rows: u32,
    num_batches: u32,
    has_lengths: u32,
    v_first: u32,
    kv_lengths_first: u32,
    output_first: u32,
    grad_output_first: u32,
    log_sum_exp_first: u32,
}

@group(0) @binding(0) var<uniform>             params:      Params;
@group(0) @binding(1) var<storage, read>       v:           array<f32>;
@group(0) @binding(2) var<storage, read>       kv_lengths:  array<i32>;
@group(0) @binding(3) var<storage, read>       output:      array<f32>;
@group(0) @binding(4) var<storage, read>       grad_output: array<f32>;
@group(0) @binding(5) var<storage, read>       log_sum_exp: array<u32>;
@group(0) @binding(6) var<storage, read_write> prepared:    array<u32>;

@compute @workgroup_size(64)
fn additive_attention_backward_prepare(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let item = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (item < params.num_rows) {
        var log_sum = -MASKED;
        var delta = 0.0;
        let bits = log_sum_exp[params.log_sum_exp_first + item];
        if (bits != NEGATIVE_INFINITY_BITS) {
            log_sum = bitcast<f32>(bits) * LOG2_E;
            let first = item * params.value_dim;
            for (var c = 0u; c < params.value_dim; c++) {
                delta += output[params.output_first + first + c]
                    * grad_output[params.grad_output_first + first + c];
            }
        }
        prepared[2u * item] = bitcast<u32>(log_sum);
        prepared[2u * item + 1u] = bitcast<u32>(delta);
        return;
    }
    let d = item - params.num_rows;
    if (d < params.dim) {
        prepared[2u * params.num_rows + d] = bitcast<u32>(v[params.v_first + d]);
        return;
    }
    let batch = d - params.dim;
    if (batch < params.num_batches) {
        var keys = params.kv_len;
        if (params.has_lengths != 0u) {
            let len = kv_lengths[params.kv_lengths_first + batch];
            keys = u32(clamp(len, 0, i32(params.kv_len)));
        }
        prepared[2u * params.num_rows + params.dim + batch] = keys;
    }
}
