// additive_attention_backward_query: queries are rows, keys columns. Same names as
// additive_attention_backward_key.wgsl.

fn row_term(i: u32) -> f32 {
    return element(query[word_of(i)], i);
}

fn column_term(i: u32) -> f32 {
    return element(key[word_of(i)], i);
}

fn row_value(i: u32) -> f32 {
    return grad_output[i];
}

fn column_value(i: u32) -> f32 {
    return element(value[word_of(i)], i);
}

fn tile_of(lane: Lane, group: u32) -> Tile {
    let batch = group / params.num_tiles;
    return Tile(
        batch,
        group % params.num_tiles * (WORKGROUP_SIZE * ROWS_PER_LANE),
        params.q_len,
        params.q_len,
        keys_of(lane, batch),
        params.query_first + batch * params.q_len * params.dim,
        params.key_first + batch * params.kv_len * params.dim,
        params.grad_output_first + batch * params.q_len * params.value_dim,
        params.value_first + batch * params.kv_len * params.value_dim,
    );
}

fn statistics_of_rows(tile: Tile, rows: RowIndices) -> Statistics {
    var statistics: Statistics;
    // unroll
    for (var r = 0u; r < ROWS_PER_LANE; r++) {
        let i = row_index(rows, r);
        statistics.log_sum = with_row(statistics.log_sum, r, log_sum_of_query(tile, i));
        statistics.delta = with_row(statistics.delta, r, delta_of_query(tile, i));
    }
    return statistics;
}

// those of a pair's query
fn log_sum_of(tile: Tile, statistics: Statistics, column: u32) -> Rows {
    return statistics.log_sum;
}

fn delta_of(tile: Tile, statistics: Statistics, column: u32) -> Rows {
    return statistics.delta;
}
