// attention_rows: the tiles of kernels whose workgroups take rows of queries: ROW_TILE rows of one
// head, against one split of the keys in steps of KEY_TILE.

fn tile_of(group: u32) -> Tile {
    let counted = number_and_rest(group);
    // the last tiles have the most keys under a causal mask
    let number = params.num_tiles - 1u - counted.x;
    let rest = counted.y;
    let split = rest % params.num_splits;
    let heads = select(params.num_heads, params.num_heads / params.group_size, FOLDED);
    let head = rest / params.num_splits % heads * select(1u, params.group_size, FOLDED);
    var tile = head_tile(rest / params.num_splits / heads, head);
    tile.split = split;
    tile.start = number * ROW_TILE;
    if (tile.start < tile.rows) {
        var first = tile.start;
        var last = min(tile.start + ROW_TILE, tile.rows) - 1u;
        if (FOLDED) {
            first = 0u;
            last = tile.q_len - 1u;
        }
        let split_start = split * params.split_keys;
        tile.key_start = max(first_key(tile, first), split_start) / KEY_TILE * KEY_TILE;
        tile.key_end = min(end_key(tile, last), split_start + params.split_keys);
    }
    return tile;
}

fn largest(score: vec4<f32>) -> f32 {
    let pairs = max(score.xy, score.zw);
    return max(pairs.x, pairs.y);
}

// of four scores of a row, before dropout
fn weights_of(score: vec4<f32>, row_max: f32) -> vec4<f32> {
    return select(vec4<f32>(), exp2(score - vec4<f32>(row_max)), is_unmasked(score));
}

// what dropout leaves of the weights of keys key .. key + 3
fn after_dropout(tile: Tile, row: u32, key: u32, weight: vec4<f32>) -> vec4<f32> {
    if (DROPOUT) {
        let keep = kept(tile, row, key / 4u);
        return select(vec4<f32>(), params.dropout_scale * weight, keep);
    }
    return weight;
}

// What is left to do with a row when all its keys are done.
struct End {
    // of the accumulated values
    factor: f32,
    // bits
    log_sum_exp: u32,
}

// maximum in log2 units and sum of a row's weights; a sink belongs to the first split
fn with_sink(tile: Tile, row: u32, row_max: f32, row_sum: f32) -> End {
    var maximum = row_max;
    var sum = row_sum;
    var rescale = 1.0;
    if (has(HAS_SINKS) && tile.split == 0u) {
        let sink = LOG2_E * sink_of(tile, row);
        maximum = max(row_max, sink);
        rescale = exp2(row_max - maximum);
        sum = row_sum * rescale + exp2(sink - maximum);
    }
    if (sum == 0.0) {
        return End(0.0, NEGATIVE_INFINITY_BITS);
    }
    return End(rescale / sum, bitcast<u32>((maximum + log2(sum)) * LN_2));
}

// whether every row of the tile may attend all KEY_TILE keys from key_start on; block is their
// class
fn all_allowed(tile: Tile, key_start: u32, block: u32) -> bool {
    if (BIAS || (MASK && block != CLASS_ALL)) {
        return false;
    }
    let first = select(tile.start, 0u, FOLDED);
    let last = select(tile.start + ROW_TILE - 1u, tile.q_len - 1u, FOLDED);
    return key_start >= first_key(tile, last) && key_start + KEY_TILE <= end_key(tile, first);
}
