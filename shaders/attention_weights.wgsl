// attention_weights: the softmax's weights of chosen rows and heads, from log_sum_exp.
//     weight_ij = exp(s_ij - log_sum_exp_i), 0 where query i may not attend key j; before dropout
//
// Layout      see attention_problem.wgsl; weights [batch, chosen heads, chosen rows, kv_len]
// Grid        one workgroup per 8 rows and 32 keys of one head, folded to two dimensions
// Workgroup   64 invocations; invocation (x, y) computes row y and keys 4x .. 4x + 3
// Memory      none
// Holds       any sizes
// Precision   f32; 0 where log_sum_exp is -infinity
// Parts       common.wgsl, element_*.wgsl, philox.wgsl, attention_problem.wgsl,
//             attention_scores.wgsl

@group(0) @binding(1) var<storage, read>       query:       array<Word>;
@group(0) @binding(2) var<storage, read>       key:         array<Word>;
@group(0) @binding(3) var<storage, read>       bias:        array<u32>;
@group(0) @binding(4) var<storage, read>       aux:         array<u32>;
@group(0) @binding(5) var<storage, read>       log_sum_exp: array<u32>;
@group(0) @binding(6) var<storage, read_write> weights:     array<f32>;

@compute @workgroup_size(64)
fn attention_weights(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let key_start = group % params.num_splits * params.split_keys;
    var rest = group / params.num_splits;
    let chosen_row = rest % params.num_tiles * 8u + lane / 8u;
    rest /= params.num_tiles;
    let chosen_head = rest % params.chosen_heads;
    let batch = rest / params.chosen_heads;
    let row = params.chosen_row_first + chosen_row;
    if (chosen_row >= params.chosen_rows) {
        return;
    }
    var tile = head_tile(batch, params.chosen_head_first + chosen_head);
    tile.key_end = tile.kv_len;
    let keys = vec4<u32>(key_start + lane % 8u * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    let q = query_row(tile, row);
    // past the last key the last one is repeated, masked, and not stored
    let last = max(params.kv_len, 1u) - 1u;
    let at = min(keys, vec4<u32>(last));
    let k = vec4<u32>(
        key_row(tile, at.x), key_row(tile, at.y), key_row(tile, at.z), key_row(tile, at.w),
    );
    var product = vec4<f32>();
    for (var d = 0u; d < HEAD_DIM; d++) {
        let own = element(query[word_of(q + d)], q + d);
        product += own * vec4<f32>(
            element(key[word_of(k.x + d)], k.x + d), element(key[word_of(k.y + d)], k.y + d),
            element(key[word_of(k.z + d)], k.z + d), element(key[word_of(k.w + d)], k.w + d),
        );
    }
    let score = scores(tile, Pairs(vec4<u32>(row), keys), product, CLASS_SOME);
    let bits = log_sum_exp[tile.log_sum_exp + row];
    let real = is_unmasked(score) & vec4<bool>(bits != NEGATIVE_INFINITY_BITS);
    let weight = exp2(score - vec4<f32>(LOG2_E * bitcast<f32>(bits)));
    let own = select(vec4<f32>(), weight, real);
    let first = params.output_first + batch * params.output_batch
        + chosen_head * params.output_head + chosen_row * params.output_token;
    // unroll
    for (var e = 0u; e < 4u; e++) {
        if (keys[e] < params.kv_len) {
            weights[first + keys[e]] = own[e];
        }
    }
}
