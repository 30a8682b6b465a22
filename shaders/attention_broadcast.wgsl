// attention_broadcast: attention with whole rows in one invocation, for devices whose lanes are the
// registers of a CPU. Same result as attention.wgsl.
//
// Every invocation holds the queries and accumulators of four rows, as the components of vectors;
// keys and values are the same for all of them and reach them KEYS at a time through keys_at and
// values_at.
// Formulas and source as in attention.wgsl.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROW_TILE rows of one head and split, folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; invocation i computes rows i + r * WORKGROUP_SIZE, r < 4
// Memory      that of the broadcast part
// Holds       what the broadcast part asks for
// Precision   f32; a value whose weight is masked to 0 does not reach the sum, be it NaN
// Parts       common.wgsl, element_*.wgsl, philox.wgsl, attention_bindings.wgsl,
//             attention_problem.wgsl, attention_rows.wgsl, attention_scores.wgsl,
//             attention_uniform.wgsl, attention_broadcast_workgroup.wgsl, or
//             attention_hand_round.wgsl with attention_broadcast_subgroup.wgsl

const ROW_TILE: u32 = 4u * WORKGROUP_SIZE;
const KEY_TILE: u32 = KEYS;

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_broadcast(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let tile = uniform_tile(lane, tile_of(group));
    if (tile.start >= tile.rows) {
        return;
    }
    let row = vec4<u32>(tile.start + lane.index) + WORKGROUP_SIZE * vec4<u32>(0u, 1u, 2u, 3u);

    // [HEAD_DIM], [VALUE_DIM] vectors of four rows
    var q: array<vec4<f32>, HEAD_DIM>;
    var acc: array<vec4<f32>, VALUE_DIM>;
    let in_range = row < vec4<u32>(tile.rows);
    let valid = select(vec4<u32>(), row, in_range);
    let q_first = vec4<u32>(
        query_row(tile, valid.x), query_row(tile, valid.y), query_row(tile, valid.z),
        query_row(tile, valid.w),
    );
    // unroll
    for (var d = 0u; d < HEAD_DIM; d++) {
        let i = q_first + d;
        q[d] = vec4<f32>(
            element(query[word_of(i.x)], i.x), element(query[word_of(i.y)], i.y),
            element(query[word_of(i.z)], i.z), element(query[word_of(i.w)], i.w),
        );
    }
    // unroll
    for (var d = 0u; d < VALUE_DIM; d++) {
        acc[d] = vec4<f32>();
    }
    var row_max = vec4<f32>(MASKED);
    var row_sum = vec4<f32>();

    for (var key_start = tile.key_start; key_start < tile.key_end; key_start += KEYS) {
        let block = uniform_class(lane, block_class(tile, key_start));
        if (CLASSES && block == CLASS_NONE) {
            continue;
        }
        stage(lane, tile, key_start);

        // pass 1: scores
        var score: array<vec4<f32>, KEYS>;
        // unroll
        for (var j = 0u; j < KEYS; j++) {
            score[j] = vec4<f32>();
        }
        // unroll
        for (var d = 0u; d < HEAD_DIM; d++) {
            let k = keys_at(lane, d);
            // unroll
            for (var j = 0u; j < KEYS; j++) {
                score[j] += q[d] * k[j];
            }
        }

        // pass 2: mask, new maximum, weights; rescale what is there to the new maximum
        var new_max = row_max;
        // unroll
        for (var j = 0u; j < KEYS; j++) {
            score[j] = scores(tile, Pairs(row, vec4<u32>(key_start + j)), score[j], block);
            new_max = max(new_max, score[j]);
        }
        let rescale = exp2(row_max - new_max);
        row_max = new_max;
        row_sum *= rescale;
        // unroll
        for (var j = 0u; j < KEYS; j++) {
            let weight = exp2(score[j] - row_max);
            score[j] = select(vec4<f32>(), weight, is_unmasked(score[j]));
            row_sum += score[j];
        }
        if (DROPOUT) {
            for (var k = 0u; k < KEYS; k += 4u) {
                // unroll
                for (var r = 0u; r < 4u; r++) {
                    let keep = kept(tile, row[r], (key_start + k) / 4u);
                    // unroll
                    for (var e = 0u; e < 4u; e++) {
                        score[k + e][r] *= select(0.0, params.dropout_scale, keep[e]);
                    }
                }
            }
        }

        // pass 3: weighted sum of the values
        if (MASKS_PAIRS && !all_allowed(tile, key_start, block)) {
            // a masked value may be NaN, and 0 * NaN is NaN
            // unroll
            for (var d = 0u; d < VALUE_DIM; d++) {
                let v = values_at(lane, d);
                acc[d] *= rescale;
                // unroll
                for (var j = 0u; j < KEYS; j++) {
                    acc[d] += select(vec4<f32>(), score[j] * v[j], score[j] > vec4<f32>());
                }
            }
        } else {
            // unroll
            for (var d = 0u; d < VALUE_DIM; d++) {
                let v = values_at(lane, d);
                acc[d] *= rescale;
                // unroll
                for (var j = 0u; j < KEYS; j++) {
                    acc[d] += score[j] * v[j];
                }
            }
        }
    }

    // unroll
    for (var r = 0u; r < 4u; r++) {
        if (in_range[r]) {
            let first = output_row(tile, row[r]);
            let end = with_sink(tile, row[r], row_max[r], row_sum[r]);
            // unroll
            for (var d = 0u; d < VALUE_DIM; d++) {
                output[first + d] = acc[d][r] * end.factor;
            }
            if (has(WRITE_LOG_SUM_EXP)) {
                store_log_sum_exp(tile, row[r], end.log_sum_exp);
            }
        }
    }
}
