// attention_backward_query: the rows of attention_backward.wgsl are queries, the others keys.
//     grad_query_i = sum_j dproduct_ij key_j

fn row_vector(tile: Tile, row: u32, d: u32, second: bool) -> vec4<f32> {
    if (second) {
        return grad_output_vector(grad_output_row(tile, row), d);
    }
    return query_vector(query_row(tile, row), d);
}

fn other_vector(tile: Tile, other: u32, d: u32, second: bool) -> vec4<f32> {
    if (second) {
        return value_vector(value_row(tile, other), d);
    }
    return key_vector(key_row(tile, other), d);
}

fn num_rows(tile: Tile) -> u32 {
    return tile.rows;
}

// the keys that some row of start .. end may attend
fn others_of(tile: Tile, start: u32, end: u32) -> vec2<u32> {
    let first = first_key(tile, start) / OTHER_TILE * OTHER_TILE;
    return vec2<u32>(first, end_key(tile, end - 1u));
}

fn gradient_row(tile: Tile, row: u32) -> u32 {
    return params.gradient_first + tile.query - params.query_first + row * params.query_token;
}

// no second gradient
fn second_gradient_row(tile: Tile, row: u32) -> u32 {
    return 0u;
}
