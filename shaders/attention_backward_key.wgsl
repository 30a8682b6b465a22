// attention_backward_key: the rows of attention_backward.wgsl are keys, the others queries of all
// heads that share the key.
//     grad_key_j = sum_i dproduct_ij query_i;  grad_value_j = sum_i weight_ij grad_output_i

fn row_vector(tile: Tile, row: u32, d: u32, second: bool) -> vec4<f32> {
    if (second) {
        return value_vector(value_row(tile, row), d);
    }
    return key_vector(key_row(tile, row), d);
}

fn other_vector(tile: Tile, other: u32, d: u32, second: bool) -> vec4<f32> {
    if (second) {
        return grad_output_vector(grad_output_row(tile, other), d);
    }
    return query_vector(query_row(tile, other), d);
}

// also those past a sequence's length, whose gradients are 0
fn num_rows(tile: Tile) -> u32 {
    if (has(IS_PACKED)) {
        return tile.kv_len;
    }
    return params.kv_len;
}

// the queries that may attend some key of start .. end
fn others_of(tile: Tile, start: u32, end: u32) -> vec2<u32> {
    var first = 0;
    var last = i32(tile.rows) - 1;
    if (BOUNDED_ABOVE) {
        first = max(first, i32(start) - tile.upper);
    }
    if (BOUNDED_BELOW) {
        last = min(last, i32(end) - 1 - tile.lower);
    }
    if (start >= tile.kv_len || last < first) {
        return vec2<u32>();
    }
    return vec2<u32>(u32(first), u32(last) + 1u);
}

fn gradient_row(tile: Tile, row: u32) -> u32 {
    return params.gradient_first + tile.key - params.key_first + row * params.key_token;
}

fn second_gradient_row(tile: Tile, row: u32) -> u32 {
    return params.second_gradient_first + tile.value - params.value_first
        + row * params.value_token;
}
