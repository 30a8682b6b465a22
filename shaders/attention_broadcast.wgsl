// attention_broadcast: attention with whole rows in one invocation, for devices whose lanes are the
// registers of a CPU. Same result as attention.wgsl.
//
// Every invocation holds the queries and accumulators of four rows, as the components of vectors;
// keys and values are the same for all of them and reach them KEYS at a time through keys_at and
// values_at.
// Formulas and source as in attention.wgsl.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per QUERY_TILE rows of one head, folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; invocation i computes rows i + r * WORKGROUP_SIZE, r < 4
// Memory      that of the broadcast part
// Holds       what the broadcast part asks for
// Precision   f32; a value whose weight is masked to 0 does not reach the sum, be it NaN
// Parts       common.wgsl, attention_problem.wgsl,
//             broadcast_workgroup.wgsl or broadcast_subgroup.wgsl

const QUERY_TILE: u32 = 4u * WORKGROUP_SIZE;

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
    let tile = tile_of(group);
    let row = vec4<u32>(tile.query_start + lane.index)
        + WORKGROUP_SIZE * vec4<u32>(0u, 1u, 2u, 3u);

    // [HEAD_DIM], [VALUE_DIM] vectors of four rows
    var q: array<vec4<f32>, HEAD_DIM>;
    var acc: array<vec4<f32>, VALUE_DIM>;
    let in_range = row < vec4<u32>(params.q_len);
    let q_first = vec4<u32>(tile.query) + select(vec4<u32>(), row, in_range) * params.query_token;
    // unroll
    for (var d = 0u; d < HEAD_DIM; d++) {
        q[d] = params.scale_log2 * vec4<f32>(
            query[q_first.x + d], query[q_first.y + d], query[q_first.z + d], query[q_first.w + d],
        );
    }
    // unroll
    for (var d = 0u; d < VALUE_DIM; d++) {
        acc[d] = vec4<f32>();
    }
    var row_max = vec4<f32>(MASKED);
    var row_sum = vec4<f32>();
    let row_keys = vec4<u32>(keys_of(row.x), keys_of(row.y), keys_of(row.z), keys_of(row.w));
    // before this key every row of the tile may attend every key
    let full_end = keys_of(tile.query_start);

    for (var key_start = 0u; key_start < tile.key_end; key_start += KEYS) {
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
            score[j] = select(vec4<f32>(MASKED), score[j], vec4<u32>(key_start + j) < row_keys);
            new_max = max(new_max, score[j]);
        }
        let rescale = exp2(row_max - new_max);
        row_max = new_max;
        row_sum *= rescale;
        // unroll
        for (var j = 0u; j < KEYS; j++) {
            let allowed = vec4<u32>(key_start + j) < row_keys;
            score[j] = select(vec4<f32>(), exp2(score[j] - row_max), allowed);
            row_sum += score[j];
        }

        // pass 3: weighted sum of the values
        if (CAUSAL && key_start + KEYS > full_end) {
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

    let factor = select(vec4<f32>(), 1.0 / row_sum, row_sum > vec4<f32>());
    // unroll
    for (var r = 0u; r < 4u; r++) {
        if (in_range[r]) {
            let first = tile.output + row[r] * params.output_token;
            // unroll
            for (var d = 0u; d < VALUE_DIM; d++) {
                output[first + d] = acc[d][r] * factor[r];
            }
            if (params.write_log_sum_exp != 0u) {
                log_sum_exp[tile.log_sum_exp + row[r]] = log_sum_exp_bits(row_max[r], row_sum[r]);
            }
        }
    }
}
