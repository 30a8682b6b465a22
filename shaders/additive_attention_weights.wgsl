// additive_attention_weights: weights_ij = exp(score_ij - log_sum_exp_i), after additive_attention
// has written log_sum_exp. For those who want to look at them: nothing else needs O(q_len kv_len)
// memory.
//
// Layout      see additive_attention_problem.wgsl; result is weights [batch, q_len, kv_len]
// Grid        one workgroup per tile of WORKGROUP_SIZE * ROWS_PER_LANE queries of one batch row,
//             folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; an invocation computes ROWS_PER_LANE whole rows
// Memory      that of the columns part
// Holds       CHUNK == 2 * CHUNK_PAIRS
// Precision   f32; the weight of a masked key is 0
// Parts       common.wgsl, element_*.wgsl, additive_attention_problem.wgsl,
//             additive_attention_scores.wgsl, additive_attention_rows_*.wgsl,
//             additive_attention_columns_*.wgsl

@compute @workgroup_size(WORKGROUP_SIZE)
fn additive_attention_weights(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let tile = tile_of(lane, group);
    let all_rows = rows_from(tile.row_start + lane.index);
    let rows = min(all_rows, RowIndices(tile.row_end - 1u));
    let first_row = params.result_first + tile.batch * params.q_len * params.kv_len;
    let lse_first = params.log_sum_exp_first + tile.batch * params.q_len;

    for (var column_start = 0u; column_start < tile.column_end; column_start += COLUMNS) {
        let score = scores(lane, tile, rows, column_start);
        // unroll
        for (var r = 0u; r < ROWS_PER_LANE; r++) {
            let row = row_index(rows, r);
            let lse = bitcast<f32>(log_sum_exp[lse_first + row]) * LOG2_E;
            if (row_index(all_rows, r) < tile.row_end) {
                // unroll
                for (var j = 0u; j < COLUMNS; j++) {
                    let column = column_start + j;
                    let allowed = is_allowed(tile, row, column);
                    let weight = select(0.0, exp2(row_of(score[j], r) - lse), allowed);
                    if (column < tile.column_end) {
                        result[first_row + row * params.kv_len + column] = weight;
                    }
                }
            }
        }
    }
    // the keys past the length
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        let row = row_index(all_rows, r);
        if (row < tile.row_end) {
            for (var column = tile.column_end; column < params.kv_len; column++) {
                result[first_row + row * params.kv_len + column] = 0.0;
            }
        }
    }
}
