// attention_backward_bias: the gradient of the bias, summed over the axes along which it is the
// same.
//     grad_bias = sum of ds over batch rows, heads, queries, keys that share the element
// A workgroup takes a tile of the bias, goes through all blocks of pairs that share it in one
// order, and computes their gradients anew: no atomics, no memory beyond the result.
//
// Layout      see attention_problem.wgsl; gradient has the bias's own shape, f32
// Grid        one workgroup per ROW_TILE queries and OTHER_TILE keys of the bias, folded
// Workgroup   THREADS_X * THREADS_Y invocations, as in attention_backward_products.wgsl
// Memory      that of attention_backward_products.wgsl
// Holds       BIAS_BATCH, BIAS_HEADS, BIAS_QUERIES, BIAS_KEYS: the axes that the bias has; ADD: the
//             gradient holds the sum of other batch rows and heads
// Precision   f32
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_problem.wgsl,
//             attention_scores.wgsl, attention_loads*.wgsl, attention_uniform.wgsl,
//             attention_lane.wgsl, attention_backward_bindings.wgsl,
//             attention_backward_classes.wgsl, attention_backward_pairs.wgsl,
//             attention_backward_products.wgsl, attention_backward_query.wgsl

const STAGE_SIZE: u32 = PRODUCTS_SIZE;

// the tile that this workgroup has, or all of an axis that the bias lacks
fn part_of(number: u32, has_axis: bool, count: u32) -> vec2<u32> {
    if (has_axis) {
        return vec2<u32>(number, number + 1u);
    }
    return vec2<u32>(0u, count);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_backward_bias(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let row_tiles = (params.q_len + ROW_TILE - 1u) / ROW_TILE;
    let key_tiles = (params.kv_len + OTHER_TILE - 1u) / OTHER_TILE;
    let bias_key_tiles = select(1u, key_tiles, BIAS_KEYS);
    let bias_row_tiles = select(1u, row_tiles, BIAS_QUERIES);
    let bias_heads = select(1u, params.num_heads, BIAS_HEADS);
    let own_keys = part_of(group % bias_key_tiles, BIAS_KEYS, key_tiles);
    var rest = group / bias_key_tiles;
    let own_rows = part_of(rest % bias_row_tiles, BIAS_QUERIES, row_tiles);
    rest /= bias_row_tiles;
    let own_heads = part_of(rest % bias_heads, BIAS_HEADS, params.num_heads);
    rest /= bias_heads;
    let own_batch = part_of(rest, BIAS_BATCH, params.num_batches);
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;

    var sum: Block;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        sum[r] = vec4<f32>();
    }
    for (var batch = own_batch.x; batch < own_batch.y; batch++) {
        for (var head = own_heads.x; head < own_heads.y; head++) {
            var tile = uniform_tile(lane, head_tile(batch, head));
            tile.key_end = tile.kv_len;
            for (var row_tile = own_rows.x; row_tile < own_rows.y; row_tile++) {
                let row_start = row_tile * ROW_TILE;
                if (row_start >= tile.rows) {
                    continue;
                }
                let range = others_of(tile, row_start, min(row_start + ROW_TILE, tile.rows));
                for (var key_tile = own_keys.x; key_tile < own_keys.y; key_tile++) {
                    let others = vec2<u32>(key_tile * OTHER_TILE, range.y);
                    if (others.x >= range.y || others.x + OTHER_TILE <= range.x) {
                        continue;
                    }
                    // none of its own if the mask keeps these keys from all rows
                    let end = others.x + OTHER_TILE;
                    let own = next_others(lane, tile, row_start, others.x, end);
                    if (own.start >= end) {
                        continue;
                    }
                    let product = products(lane, tile, Factors(row_start, others, false));
                    let grad_weight = products(lane, tile, Factors(row_start, others, true));
                    let other = vec4<u32>(others.x + 4u * x) + vec4<u32>(0u, 1u, 2u, 3u);
                    // unroll
                    for (var r = 0u; r < ROWS; r++) {
                        let row = row_start + y + r * THREADS_Y;
                        let pair =
                            gradients_of(tile, row, other, product[r], grad_weight[r], own.block);
                        sum[r] += select(vec4<f32>(), pair.score, other < vec4<u32>(range.y));
                    }
                }
            }
        }
    }

    // unroll
    for (var r = 0u; r < ROWS; r++) {
        wg_pairs[pair_index(y + r * THREADS_Y, x)] = sum[r];
    }
    // wg_pairs is visible
    workgroupBarrier();
    let rows_each = select(ROW_TILE, 1u, BIAS_QUERIES);
    let keys_each = select(OTHER_TILE, 1u, BIAS_KEYS);
    let columns = OTHER_TILE / keys_each;
    let base = params.gradient_first + own_batch.x * params.bias_batch
        + own_heads.x * params.bias_head;
    for (var i = lane.index; i < ROW_TILE / rows_each * columns; i += WORKGROUP_SIZE) {
        let row = own_rows.x * ROW_TILE + i / columns;
        let key = own_keys.x * OTHER_TILE + i % columns;
        if (row < params.q_len && key < params.kv_len) {
            var total = 0.0;
            for (var r = 0u; r < rows_each; r++) {
                for (var k = 0u; k < keys_each; k++) {
                    let own_key = i % columns + k;
                    total += wg_pairs[pair_index(i / columns + r, own_key / 4u)][own_key % 4u];
                }
            }
            let at = base + row * params.bias_query + key * params.bias_key;
            if (ADD) {
                total += gradient[at];
            }
            gradient[at] = total;
        }
    }
}
