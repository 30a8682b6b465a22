// attention_decode: output = softmax(scores) value for few rows against many keys, bound by the
// reading of the keys and values.
//
// The mathematics of attention.wgsl, KEY_TILE keys at a time. A key or value goes from the buffer
// into registers and is used there for all rows; only scores pass through workgroup memory. Of the
// keys and the values one tile each is always on its way: neither waits for scores.
// Source: Dao et al. 2023 (Flash-Decoding), for the splits of the keys.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROWS rows of one head and split, folded to two dimensions
// Workgroup   THREADS_X * THREADS_Y invocations, in three roles: (x, y) computes products of every
//             THREADS_Y-th key from y on with all rows, over every THREADS_X-th vector of the head
//             dimension from x on; (x, y) with y < ROWS computes weights of row y, of every
//             THREADS_X-th vector of four keys; one of VALUE_LANES sums a vector of the values,
//             over every VALUE_ROWS-th vector of four keys, for all rows
// Memory      wg_vectors: the rows, at the end shares of the sums; wg_products; wg_weights
// Holds       ROWS == 4 * ROW_VECTORS, at most THREADS_Y; THREADS_X and THREADS_Y are powers of
//             two; KEYS_EACH * THREADS_Y == VALUE_VECTORS * VALUE_ROWS * 4 == KEY_TILE;
//             ITEMS * THREADS_X * 4 >= KEY_TILE; HEAD_VECTORS * THREADS_X * 4 >= HEAD_DIM;
//             VALUE_LANES * 4 >= VALUE_DIM
// Precision   f32; a value whose weight is masked to 0 does not reach the sum, be it NaN
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_bindings.wgsl,
//             attention_problem.wgsl, attention_rows.wgsl, attention_loads*.wgsl,
//             attention_scores.wgsl, attention_uniform.wgsl, reduce_workgroup.wgsl or
//             reduce_subgroup.wgsl, attention_decode_registers.wgsl

const WORKGROUP_SIZE: u32 = THREADS_X * THREADS_Y;
const ROW_TILE: u32 = ROWS;
const KEY_VECTORS: u32 = KEY_TILE / 4u;
const VALUE_ROWS: u32 = WORKGROUP_SIZE / VALUE_LANES;
const QUERY_PITCH: u32 = HEAD_VECTORS * THREADS_X;

// [ROWS, QUERY_PITCH], and at the end of four rows [4, WORKGROUP_SIZE]
var<workgroup> wg_vectors: array<vec4<f32>, max(ROWS * QUERY_PITCH, 4u * WORKGROUP_SIZE)>;
// [ROWS, KEY_TILE]
var<workgroup> wg_products: array<f32, ROWS * KEY_TILE>;
// [ROWS, KEY_VECTORS]
var<workgroup> wg_weights: array<vec4<f32>, ROWS * KEY_VECTORS>;
// of each row what the sums so far are multiplied with
var<workgroup> wg_factors: array<f32, ROWS>;

// the start of the first block at first or behind it that is not masked altogether
fn unmasked_from(lane: Lane, tile: Tile, first: u32) -> u32 {
    var key_start = first;
    if (CLASSES) {
        for (; key_start < tile.key_end; key_start += KEY_TILE) {
            if (uniform_class(lane, block_class(tile, key_start)) != CLASS_NONE) {
                break;
            }
        }
    }
    return key_start;
}

// pass 1: products of all rows with keys
fn products(lane: Lane, keys: Keys) {
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;
    // of each key the products with four rows after the other
    var product: array<array<vec4<f32>, ROW_VECTORS>, KEYS_EACH>;
    // unroll
    for (var c = 0u; c < HEAD_VECTORS; c++) {
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            let q = wg_vectors[r * QUERY_PITCH + x + c * THREADS_X];
            // unroll
            for (var n = 0u; n < KEYS_EACH; n++) {
                let k = loaded(keys.key[n][c]);
                product[n][r / 4u][r % 4u] = add_dot(q, k, product[n][r / 4u][r % 4u]);
            }
        }
    }
    // unroll
    for (var n = 0u; n < KEYS_EACH; n++) {
        // unroll
        for (var v = 0u; v < ROW_VECTORS; v++) {
            let sum = sum_over_row(lane, product[n][v]);
            if (x == (n * ROW_VECTORS + v) % THREADS_X) {
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    wg_products[(4u * v + e) * KEY_TILE + y + n * THREADS_Y] = sum[e];
                }
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_decode(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let tile = uniform_tile(lane, tile_of(group));
    if (tile.start >= tile.rows) {
        return;
    }
    var key_start = unmasked_from(lane, tile, tile.key_start);
    var keys: Keys;
    var values: Values;
    if (key_start < tile.key_end) {
        keys = load_keys(lane, tile, key_start);
        values = load_values(lane, tile, key_start);
    }
    for (var i = lane.index; i < ROWS * QUERY_PITCH; i += WORKGROUP_SIZE) {
        let row = tile.start + i / QUERY_PITCH;
        var staged = vec4<f32>();
        if (row < tile.rows) {
            staged = query_vector(query_row(tile, row), 4u * (i % QUERY_PITCH));
        }
        wg_vectors[i] = staged;
    }
    // of the row whose weights this invocation computes; the sum over its own keys, until the end
    let own = lane.index / THREADS_X;
    let row = tile.start + own;
    let item = lane.index % THREADS_X;
    var row_max = MASKED;
    var row_sum = 0.0;
    var sums: array<vec4<f32>, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        sums[r] = vec4<f32>();
    }
    // wg_vectors is visible
    workgroupBarrier();

    while (key_start < tile.key_end) {
        let block = block_class(tile, key_start);
        let next = unmasked_from(lane, tile, key_start + KEY_TILE);
        products(lane, keys);
        if (next < tile.key_end) {
            keys = load_keys(lane, tile, next);
        }
        // wg_products is visible, wg_weights and wg_factors are free
        workgroupBarrier();

        // pass 2: mask, new maximum, weights
        var score: array<vec4<f32>, ITEMS>;
        var own_max = MASKED;
        // unroll
        for (var n = 0u; n < ITEMS; n++) {
            let slot = 4u * (item + n * THREADS_X);
            if (own < ROWS && slot < KEY_TILE) {
                let at = own * KEY_TILE + slot;
                let product = vec4<f32>(wg_products[at], wg_products[at + 1u],
                    wg_products[at + 2u], wg_products[at + 3u]);
                let slots = vec4<u32>(key_start + slot) + vec4<u32>(0u, 1u, 2u, 3u);
                score[n] = scores(tile, Pairs(vec4<u32>(row), slots), product, block);
                own_max = max(own_max, largest(score[n]));
            }
        }
        let new_max = max(row_max, max_over_row(lane, vec4<f32>(own_max)).x);
        let rescale = exp2(row_max - new_max);
        row_max = new_max;
        row_sum *= rescale;
        // unroll
        for (var n = 0u; n < ITEMS; n++) {
            let slot = 4u * (item + n * THREADS_X);
            if (own < ROWS && slot < KEY_TILE) {
                let before = weights_of(score[n], row_max);
                row_sum += dot(before, vec4<f32>(1.0));
                wg_weights[own * KEY_VECTORS + slot / 4u] =
                    after_dropout(tile, row, key_start + slot, before);
            }
        }
        if (own < ROWS && item == 0u) {
            wg_factors[own] = rescale;
        }
        // wg_weights and wg_factors are visible, wg_products is free
        workgroupBarrier();

        // pass 3: weighted sum of the values
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            sums[r] *= wg_factors[r];
        }
        var masked = key_start + KEY_TILE > tile.key_end;
        if (MASKS_PAIRS) {
            masked = !all_allowed(tile, key_start, block);
        }
        if (masked) {
            accumulate_unmasked(lane, values, &sums);
        } else {
            accumulate(lane, values, &sums);
        }
        if (next < tile.key_end) {
            values = load_values(lane, tile, next);
        }
        key_start = next;
    }

    row_sum = sum_over_row(lane, vec4<f32>(row_sum)).x;
    // wg_factors and wg_vectors are free
    workgroupBarrier();
    if (own < ROWS && item == 0u && row < tile.rows) {
        let end = with_sink(tile, row, row_max, row_sum);
        wg_factors[own] = end.factor;
        if (has(WRITE_LOG_SUM_EXP)) {
            store_log_sum_exp(tile, row, end.log_sum_exp);
        }
    }
    // unroll
    for (var v = 0u; v < ROW_VECTORS; v++) {
        // unroll
        for (var e = 0u; e < 4u; e++) {
            wg_vectors[e * WORKGROUP_SIZE + lane.index] = sums[4u * v + e];
        }
        // wg_vectors and wg_factors are visible
        workgroupBarrier();
        for (var i = lane.index; i < 4u * VALUE_LANES; i += WORKGROUP_SIZE) {
            let r = 4u * v + i / VALUE_LANES;
            if (tile.start + r < tile.rows) {
                var sum = vec4<f32>();
                for (var j = 0u; j < VALUE_ROWS; j++) {
                    let share = j * VALUE_LANES + i % VALUE_LANES;
                    sum += wg_vectors[i / VALUE_LANES * WORKGROUP_SIZE + share];
                }
                let first = output_row(tile, tile.start + r);
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    let d = 4u * (i % VALUE_LANES) + e;
                    if (d < VALUE_DIM) {
                        output[first + d] = sum[e] * wg_factors[r];
                    }
                }
            }
        }
        // wg_vectors is free
        workgroupBarrier();
    }
}
