// additive_attention_backward: the gradients of additive_attention that belong to the rows of a
// tile. Queries are rows in one launch, keys in the other.
//
// With E = exp(2 (query_id + key_jd)), r = 1 / (1 + E), tanh = 1 - 2r, 1 - tanh^2 = 4 E r^2:
//     weight_ij = exp(score_ij - log_sum_exp_i)
//     grad_score_ij = weight_ij (grad_output_i . value_j - delta_i)
//     grad_query_id = v_d sum_j grad_score_ij 4 E r^2    grad_key_jd: the same, summed over i
//     grad_value_j = sum_i weight_ij grad_output_i        grad_v_d = sum_ij grad_score_ij (1 - 2r)
// Scores are computed again, so that nothing of size q_len kv_len is ever stored.
// Source: Dao et al. 2022 (FlashAttention), Alg. 4, with the derivative of tanh.
//
// Layout      see additive_attention_backward_problem.wgsl
// Grid        one workgroup per tile of WORKGROUP_SIZE * ROWS_PER_LANE rows of one batch row,
//             folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; an invocation computes ROWS_PER_LANE whole rows, against
//             COLUMNS columns at a time
// Memory      that of the columns part; gradients accumulate where they belong, each element in the
//             hands of one invocation
// Holds       CHUNK == 2 * CHUNK_PAIRS
// Precision   f32; what is masked does not reach a gradient, be it NaN
// Parts       common.wgsl, element_*.wgsl, additive_attention_backward_problem.wgsl,
//             additive_attention_backward_query.wgsl or additive_attention_backward_key.wgsl,
//             additive_attention_scores.wgsl, additive_attention_rows_*.wgsl,
//             additive_attention_columns_*.wgsl

// element 0 of the gradients of this invocation's rows, and which of them exist
struct Targets {
    in_range: RowFlags,
    terms: RowIndices,
    values: RowIndices,
    // grad_v, summed over this invocation's rows
    v: u32,
}

fn row_is(flags: RowFlags, r: u32) -> bool {
    return row_of(select(Rows(0.0), Rows(1.0), flags), r) > 0.0;
}

fn values_of_rows(at: RowIndices) -> Rows {
    var x: Rows;
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        x = with_row(x, r, row_value(row_index(at, r)));
    }
    return x;
}

fn clean_term_of_rows(tile: Tile, rows: RowIndices, d: u32) -> Rows {
    var x = term_of_rows(tile, rows, d);
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        x = with_row(x, r, select(row_of(x, r), 0.0, is_nan(row_of(x, r))));
    }
    return x;
}

// element d, of grad_score 4 E r^2 and of grad_score (1 - 2r), both summed over columns
fn add_terms(targets: Targets, d: u32, slope: Rows, tanh_sum: Rows) {
    if (d >= params.dim) {
        return;
    }
    let gradient = 4.0 * v_at(d) * slope;
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        if (row_is(targets.in_range, r)) {
            grad_terms[row_index(targets.terms, r) + d] += row_of(gradient, r);
        }
    }
    if (!ROWS_ARE_KEYS) {
        grad_second[targets.v + d] += sum_of_rows(tanh_sum);
    }
}

fn add_values(targets: Targets, c: u32, sum: Rows) {
    if (c >= params.value_dim) {
        return;
    }
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        if (row_is(targets.in_range, r)) {
            grad_second[row_index(targets.values, r) + c] += row_of(sum, r);
        }
    }
}

fn clear(targets: Targets) {
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        if (row_is(targets.in_range, r)) {
            for (var d = 0u; d < params.dim; d++) {
                grad_terms[row_index(targets.terms, r) + d] = 0.0;
            }
            for (var c = 0u; ROWS_ARE_KEYS && c < params.value_dim; c++) {
                grad_second[row_index(targets.values, r) + c] = 0.0;
            }
        }
    }
    for (var d = 0u; !ROWS_ARE_KEYS && d < params.dim; d++) {
        grad_second[targets.v + d] = 0.0;
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn additive_attention_backward(
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
    let row_0 = tile.batch * tile.row_end;
    let targets = Targets(
        all_rows < RowIndices(tile.row_end),
        RowIndices(params.grad_terms_first + row_0 * params.dim) + rows * params.dim,
        RowIndices(params.grad_second_first + row_0 * params.value_dim) + rows * params.value_dim,
        params.grad_second_first + (group * WORKGROUP_SIZE + lane.index) * params.dim,
    );
    clear(targets);
    let statistics = statistics_of_rows(tile, rows);

    for (var column_start = 0u; column_start < tile.column_end; column_start += COLUMNS) {
        // pass 1: weights
        var weight = scores(lane, tile, rows, column_start);
        // unroll
        for (var j = 0u; j < COLUMNS; j++) {
            let allowed = rows_allowed(tile, all_rows, column_start + j);
            let log_sum = log_sum_of(tile, statistics, column_start + j);
            weight[j] = select(Rows(0.0), exp2(weight[j] - log_sum), allowed);
        }

        // pass 2: gradients of the weights, and of the values where they are rows
        var grad: array<Rows, COLUMNS>;
        // unroll
        for (var j = 0u; j < COLUMNS; j++) {
            grad[j] = Rows(0.0);
        }
        for (var first = 0u; first < params.value_dim; first += VALUE_CHUNK) {
            stage_values(lane, tile, column_start, first);
            // unroll
            for (var c = 0u; c < VALUE_CHUNK; c++) {
                let value_c = values_at(lane, tile, column_start, first, c);
                let inside = first + c < params.value_dim;
                let at = RowIndices(tile.row_values + select(0u, first + c, inside));
                let row_c = values_of_rows(at + rows * params.value_dim);
                let row_or_0 = select(Rows(0.0), row_c, inside);
                // unroll
                for (var j = 0u; j < COLUMNS; j++) {
                    grad[j] += row_or_0 * value_c[j];
                }
                if (ROWS_ARE_KEYS) {
                    var sum = Rows(0.0);
                    // unroll
                    for (var j = 0u; j < COLUMNS; j++) {
                        if (HAS_MASK) {
                            // a query that attends nothing may come with any grad_output
                            let product = weight[j] * value_c[j];
                            sum += select(product, Rows(0.0), weight[j] == Rows(0.0));
                        } else {
                            sum += weight[j] * value_c[j];
                        }
                    }
                    add_values(targets, first + c, sum);
                }
            }
        }

        // pass 3: gradients of the scores
        var total = Rows(0.0);
        // unroll
        for (var j = 0u; j < COLUMNS; j++) {
            let difference = grad[j] - delta_of(tile, statistics, column_start + j);
            grad[j] = select(weight[j] * difference, Rows(0.0), weight[j] == Rows(0.0));
            total += grad[j];
        }

        // pass 4: through tanh, to the terms and to v
        for (var chunk = 0u; chunk < params.dim; chunk += CHUNK) {
            var row: array<Rows, CHUNK>;
            var wild_rows = false;
            // unroll
            for (var d = 0u; d < CHUNK; d++) {
                let x = clean_term_of_rows(tile, rows, chunk + d);
                wild_rows = wild_rows || is_any(abs(x) > Rows(FACTORED_BOUND));
                row[d] = exp2(TWO_LOG2_E * x);
            }
            let wild = stage_terms(lane, tile, column_start, chunk, true, wild_rows);
            // sums over the columns of grad E r^2 and grad r
            var slope: array<Rows, CHUNK>;
            var r_sum: array<Rows, CHUNK>;
            // unroll
            for (var p = 0u; p < CHUNK_PAIRS; p++) {
                let b0 = terms_at(2u * p);
                let b1 = terms_at(2u * p + 1u);
                var slope0 = Rows(0.0);
                var slope1 = Rows(0.0);
                var sum0 = Rows(0.0);
                var sum1 = Rows(0.0);
                // unroll
                for (var j = 0u; j < COLUMNS; j++) {
                    let e0 = row[2u * p] * b0[j];
                    let e1 = row[2u * p + 1u] * b1[j];
                    let x0 = e0 + 1.0;
                    let x1 = e1 + 1.0;
                    let both = 1.0 / (x0 * x1);
                    let r0 = x1 * both;
                    let r1 = x0 * both;
                    let grad_r0 = grad[j] * r0;
                    let grad_r1 = grad[j] * r1;
                    sum0 += grad_r0;
                    sum1 += grad_r1;
                    slope0 += grad_r0 * (e0 * r0);
                    slope1 += grad_r1 * (e1 * r1);
                }
                slope[2u * p] = slope0;
                slope[2u * p + 1u] = slope1;
                r_sum[2u * p] = sum0;
                r_sum[2u * p + 1u] = sum1;
            }
            if (wild) {
                // rare: short code, a column at a time
                let end = min(chunk + CHUNK, params.dim);
                for (var d = chunk; d < end; d++) {
                    let a = clean_term_of_rows(tile, rows, d);
                    var slope_d = Rows(0.0);
                    var sum_d = Rows(0.0);
                    for (var column = 0u; column < COLUMNS; column++) {
                        var grad_j = Rows(0.0);
                        // unroll
                        for (var j = 0u; j < COLUMNS; j++) {
                            grad_j = select(grad_j, grad[j], RowFlags(j == column));
                        }
                        let at = column_at(tile, column_start + column);
                        let x = a + term_of_column(tile, at, d, true);
                        let r = direct(x);
                        sum_d += grad_j * r;
                        // 1 - r, and not with the digits that a subtraction would leave
                        slope_d += grad_j * r * direct(-x);
                    }
                    add_terms(targets, d, slope_d, total - 2.0 * sum_d);
                }
            } else {
                // unroll
                for (var d = 0u; d < CHUNK; d++) {
                    add_terms(targets, chunk + d, slope[d], total - 2.0 * r_sum[d]);
                }
            }
        }
    }
}
