// additive_attention_backward_key: keys are rows, queries columns. Same names as
// additive_attention_backward_query.wgsl.

fn row_term(i: u32) -> f32 {
    return element(key[word_of(i)], i);
}

fn column_term(i: u32) -> f32 {
    return element(query[word_of(i)], i);
}

fn row_value(i: u32) -> f32 {
    return element(value[word_of(i)], i);
}

fn column_value(i: u32) -> f32 {
    return grad_output[i];
}

fn tile_of(lane: Lane, group: u32) -> Tile {
    let batch = group / params.num_tiles;
    let row_start = group % params.num_tiles * (WORKGROUP_SIZE * ROWS_PER_LANE);
    let keys = keys_of(lane, batch);
    return Tile(
        batch,
        row_start,
        params.kv_len,
        keys,
        select(0u, params.q_len, row_start < keys),
        params.key_first + batch * params.kv_len * params.dim,
        params.query_first + batch * params.q_len * params.dim,
        params.value_first + batch * params.kv_len * params.value_dim,
        params.grad_output_first + batch * params.q_len * params.value_dim,
    );
}

fn statistics_of_rows(tile: Tile, rows: RowIndices) -> Statistics {
    return Statistics();
}

// those of a pair's query
fn log_sum_of(tile: Tile, statistics: Statistics, column: u32) -> Rows {
    return Rows(log_sum_of_query(tile, column_at(tile, column)));
}

fn delta_of(tile: Tile, statistics: Statistics, column: u32) -> Rows {
    return Rows(delta_of_query(tile, column_at(tile, column)));
}
