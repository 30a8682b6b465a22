// additive_attention: output = softmax(score) value, score_ij = sum_d v_d tanh(query_id + key_jd),
// one pass over the keys.
//
// For one query row, with running maximum m, running sum l and accumulator acc:
//     m' = max(m, s)
//     l' = l * exp(m - m') + exp(s - m')
//     acc' = acc * exp(m - m') + exp(s - m') * value_j
// and finally output = acc / l, log_sum_exp = m + ln l.
// Source: Bahdanau, Cho and Bengio 2015; Milakov & Gimelshein 2018 (online softmax).
//
// Layout      see additive_attention_problem.wgsl
// Grid        one workgroup per tile of WORKGROUP_SIZE * ROWS_PER_LANE queries of one batch row,
//             folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; an invocation computes ROWS_PER_LANE whole rows, against
//             COLUMNS keys at a time
// Memory      that of the columns part. With MANY_VALUE_CHUNKS the accumulators lie in the output
// Holds       CHUNK == 2 * CHUNK_PAIRS, VALUE_CHUNK >= value_dim unless MANY_VALUE_CHUNKS
// Precision   f32; a value whose weight is masked to 0 does not reach the sum, be it NaN
// Parts       common.wgsl, element_*.wgsl, additive_attention_problem.wgsl,
//             additive_attention_scores.wgsl, additive_attention_rows_*.wgsl,
//             additive_attention_columns_*.wgsl

@compute @workgroup_size(WORKGROUP_SIZE)
fn additive_attention(
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
    let in_range = all_rows < RowIndices(tile.row_end);
    let rows = min(all_rows, RowIndices(tile.row_end - 1u));
    let first_row = params.result_first + tile.batch * params.q_len * params.value_dim;
    let output_at = RowIndices(first_row) + rows * params.value_dim;

    var acc: array<Rows, VALUE_CHUNK>;
    // unroll
    for (var c = 0u; c < VALUE_CHUNK; c++) {
        acc[c] = Rows(0.0);
    }
    var row_max = Rows(MASKED);
    var row_sum = Rows(0.0);

    for (var column_start = 0u; column_start < tile.column_end; column_start += COLUMNS) {
        var weight = scores(lane, tile, rows, column_start);

        // mask, new maximum, weights
        var new_max = row_max;
        // unroll
        for (var j = 0u; j < COLUMNS; j++) {
            let allowed = rows_allowed(tile, rows, column_start + j);
            weight[j] = select(Rows(MASKED), weight[j], allowed);
            new_max = max(new_max, weight[j]);
        }
        let rescale = exp2(row_max - new_max);
        row_max = new_max;
        row_sum *= rescale;
        // unroll
        for (var j = 0u; j < COLUMNS; j++) {
            // as integers: a comparison with NaN may be taken for impossible
            let allowed = bitcast<RowIndices>(weight[j]) != RowIndices(MASKED_BITS);
            weight[j] = select(Rows(0.0), exp2(weight[j] - row_max), allowed);
            row_sum += weight[j];
        }

        // rescale what is there to the new maximum, add the weighted values
        for (var first = 0u; first < params.value_dim; first += VALUE_CHUNK) {
            stage_values(lane, tile, column_start, first);
            // unroll
            for (var c = 0u; c < VALUE_CHUNK; c++) {
                if (MANY_VALUE_CHUNKS) {
                    acc[c] = Rows(0.0);
                    if (column_start > 0u && first + c < params.value_dim) {
                        acc[c] = outputs_of_rows(output_at + RowIndices(first + c));
                    }
                }
                let value_c = values_at(lane, tile, column_start, first, c);
                acc[c] *= rescale;
                // unroll
                for (var j = 0u; j < COLUMNS; j++) {
                    if (HAS_MASK) {
                        // a masked value may be NaN, and 0 * NaN is NaN
                        let product = weight[j] * value_c[j];
                        acc[c] += select(product, Rows(0.0), weight[j] == Rows(0.0));
                    } else {
                        acc[c] += weight[j] * value_c[j];
                    }
                }
                if (MANY_VALUE_CHUNKS && first + c < params.value_dim) {
                    // unroll
                    for (var r = 0u; r < ROWS_PER_LANE; r++) {
                        if (row_index(all_rows, r) < tile.row_end) {
                            result[row_index(output_at, r) + first + c] = row_of(acc[c], r);
                        }
                    }
                }
            }
        }
    }

    let factor = select(Rows(0.0), 1.0 / row_sum, row_sum != Rows(0.0));
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        let row = row_index(all_rows, r);
        if (row < tile.row_end) {
            let at = row_index(output_at, r);
            if (MANY_VALUE_CHUNKS) {
                for (var c = 0u; c < params.value_dim; c++) {
                    var sum = 0.0;
                    if (tile.column_end > 0u) {
                        sum = result[at + c];
                    }
                    result[at + c] = sum * row_of(factor, r);
                }
            } else {
                // unroll
                for (var c = 0u; c < VALUE_CHUNK; c++) {
                    if (c < params.value_dim) {
                        result[at + c] = row_of(acc[c], r) * row_of(factor, r);
                    }
                }
            }
            if (params.write_log_sum_exp != 0u) {
                let log2_sum = row_of(row_max, r) + log2(row_of(row_sum, r));
                let bits = bitcast<u32>(log2_sum * LN_2);
                let empty = row_of(row_sum, r) == 0.0;
                log_sum_exp[params.log_sum_exp_first + tile.batch * params.q_len + row] =
                    select(bits, NEGATIVE_INFINITY_BITS, empty);
            }
        }
    }
}

fn outputs_of_rows(at: RowIndices) -> Rows {
    var x: Rows;
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        x = with_row(x, r, result[row_index(at, r)]);
    }
    return x;
}
