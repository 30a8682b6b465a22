// attention_decode: output = softmax(scores) value for few rows against many keys, bound by the
// reading of the keys and values.
//
// The mathematics of attention.wgsl, KEY_TILE keys at a time. A key or value goes from the buffer
// into registers and is used there for all rows; only scores pass through workgroup memory.
// Source: Dao et al. 2023 (Flash-Decoding), for the splits of the keys.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROWS rows of one head and split, folded to two dimensions
// Workgroup   THREADS_X * THREADS_Y invocations, in three roles: (x, y) computes products of four
//             keys 4y .. 4y + 3 with all rows, over every THREADS_X-th vector of the head
//             dimension; one of ROW_LANES that share a row computes its weights; one of VALUE_LANES
//             sums a vector of the values, over every VALUE_ROWS-th key, for all rows
// Memory      wg_query: the rows; wg_scores: products, then weights; wg_sums: shares of the sums
// Holds       ROWS == 4 * ROW_VECTORS is a power of two; THREADS_X is one, too, and divides
//             ROW_LANES; ITEMS * ROW_LANES * 4 == KEY_TILE; 4 * THREADS_Y and 4 * VALUE_ROWS divide
//             KEY_TILE; HEAD_VECTORS * THREADS_X * 4 >= HEAD_DIM; VALUE_LANES * 4 >= VALUE_DIM
// Precision   f32; a value whose weight is masked to 0 does not reach the sum, be it NaN
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_bindings.wgsl,
//             attention_problem.wgsl, attention_rows.wgsl, attention_loads*.wgsl,
//             attention_scores.wgsl, attention_uniform.wgsl, reduce_workgroup.wgsl or
//             reduce_subgroup.wgsl

const WORKGROUP_SIZE: u32 = THREADS_X * THREADS_Y;
const ROW_TILE: u32 = ROWS;
const ROW_LANES: u32 = WORKGROUP_SIZE / ROWS;
const ROW_PARTS: u32 = ROW_LANES / THREADS_X;
const VALUE_ROWS: u32 = WORKGROUP_SIZE / VALUE_LANES;
const QUERY_PITCH: u32 = HEAD_VECTORS * THREADS_X;

// [ROWS, QUERY_PITCH]
var<workgroup> wg_query: array<vec4<f32>, ROWS * QUERY_PITCH>;
// [ROWS, KEY_TILE]
var<workgroup> wg_scores: array<f32, ROWS * KEY_TILE>;
// of each THREADS_X invocations
var<workgroup> wg_parts: array<f32, THREADS_Y>;
// of each row what the sums so far are multiplied with
var<workgroup> wg_factors: array<f32, ROWS>;
var<workgroup> wg_sums: array<vec4<f32>, WORKGROUP_SIZE>;

// pass 1: products of all rows with the keys from key_start on
fn products(lane: Lane, tile: Tile, key_start: u32) {
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;
    for (var first = 0u; first < KEY_TILE; first += 4u * THREADS_Y) {
        let slot = first + 4u * y;
        // past the end the last key stands in; what comes of it is masked
        let rows = min(vec4<u32>(key_start + slot) + vec4<u32>(0u, 1u, 2u, 3u),
            vec4<u32>(tile.key_end - 1u));
        // of four keys, of each the products with four rows
        var product: array<array<vec4<f32>, ROW_VECTORS>, 4>;
        // unroll
        for (var j = 0u; j < 4u; j++) {
            // unroll
            for (var v = 0u; v < ROW_VECTORS; v++) {
                product[j][v] = vec4<f32>();
            }
        }
        // unroll
        for (var c = 0u; c < HEAD_VECTORS; c++) {
            let d = x + c * THREADS_X;
            let k0 = key_vector(key_row(tile, rows.x), 4u * d);
            let k1 = key_vector(key_row(tile, rows.y), 4u * d);
            let k2 = key_vector(key_row(tile, rows.z), 4u * d);
            let k3 = key_vector(key_row(tile, rows.w), 4u * d);
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let q = wg_query[r * QUERY_PITCH + d];
                product[0][r / 4u][r % 4u] = add_dot(q, k0, product[0][r / 4u][r % 4u]);
                product[1][r / 4u][r % 4u] = add_dot(q, k1, product[1][r / 4u][r % 4u]);
                product[2][r / 4u][r % 4u] = add_dot(q, k2, product[2][r / 4u][r % 4u]);
                product[3][r / 4u][r % 4u] = add_dot(q, k3, product[3][r / 4u][r % 4u]);
            }
        }
        // unroll
        for (var j = 0u; j < 4u; j++) {
            // unroll
            for (var v = 0u; v < ROW_VECTORS; v++) {
                let sum = sum_over_row(lane, product[j][v]);
                if (x == (j * ROW_VECTORS + v) % THREADS_X) {
                    // unroll
                    for (var e = 0u; e < 4u; e++) {
                        wg_scores[(4u * v + e) * KEY_TILE + slot + j] = sum[e];
                    }
                }
            }
        }
    }
}

// adds four values to the sums of all rows; slots: where their weights lie
fn accumulate(
    slots: vec4<u32>,
    values: array<vec4<f32>, 4>,
    sums: ptr<function, array<vec4<f32>, ROWS>>,
) {
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var j = 0u; j < 4u; j++) {
            let weight = wg_scores[r * KEY_TILE + slots[j]];
            if (MASKS_PAIRS) {
                // 0 * NaN is NaN
                (*sums)[r] += select(vec4<f32>(), weight * values[j], weight > 0.0);
            } else {
                (*sums)[r] += weight * values[j];
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
    for (var i = lane.index; i < ROWS * QUERY_PITCH; i += WORKGROUP_SIZE) {
        let row = tile.start + i / QUERY_PITCH;
        var staged = vec4<f32>();
        if (row < tile.rows) {
            staged = query_vector(query_row(tile, row), 4u * (i % QUERY_PITCH));
        }
        wg_query[i] = staged;
    }
    // of the row whose weights this invocation computes; the sum over its own keys, until the end
    let own = lane.index / ROW_LANES;
    let row = tile.start + own;
    let item = lane.index % ROW_LANES;
    var row_max = MASKED;
    var row_sum = 0.0;
    let value_lane = lane.index % VALUE_LANES;
    let value_share = lane.index / VALUE_LANES;
    var sums: array<vec4<f32>, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        sums[r] = vec4<f32>();
    }

    for (var key_start = tile.key_start; key_start < tile.key_end; key_start += KEY_TILE) {
        let block = uniform_class(lane, block_class(tile, key_start));
        if (CLASSES && block == CLASS_NONE) {
            continue;
        }
        // wg_query is visible, wg_scores is free
        workgroupBarrier();
        products(lane, tile, key_start);
        // wg_scores is visible
        workgroupBarrier();

        // pass 2: mask, new maximum, weights
        var score: array<vec4<f32>, ITEMS>;
        var own_max = MASKED;
        // unroll
        for (var n = 0u; n < ITEMS; n++) {
            let slot = 4u * (item + n * ROW_LANES);
            let at = own * KEY_TILE + slot;
            let product = vec4<f32>(
                wg_scores[at], wg_scores[at + 1u], wg_scores[at + 2u], wg_scores[at + 3u],
            );
            let keys = vec4<u32>(key_start + slot) + vec4<u32>(0u, 1u, 2u, 3u);
            score[n] = scores(tile, Pairs(vec4<u32>(row), keys), product, block);
            own_max = max(own_max, largest(score[n]));
        }
        wg_parts[lane.index / THREADS_X] = max_over_row(lane, vec4<f32>(own_max)).x;
        // wg_parts is visible
        workgroupBarrier();
        var new_max = row_max;
        for (var p = 0u; p < ROW_PARTS; p++) {
            new_max = max(new_max, wg_parts[own * ROW_PARTS + p]);
        }
        let rescale = exp2(row_max - new_max);
        row_max = new_max;
        row_sum *= rescale;
        // unroll
        for (var n = 0u; n < ITEMS; n++) {
            let slot = 4u * (item + n * ROW_LANES);
            let before = weights_of(score[n], row_max);
            row_sum += dot(before, vec4<f32>(1.0));
            let weight = after_dropout(tile, row, key_start + slot, before);
            // unroll
            for (var e = 0u; e < 4u; e++) {
                wg_scores[own * KEY_TILE + slot + e] = weight[e];
            }
        }
        if (item == 0u) {
            wg_factors[own] = rescale;
        }
        // wg_scores and wg_factors are visible
        workgroupBarrier();

        // pass 3: weighted sum of the values
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            sums[r] *= wg_factors[r];
        }
        for (var first = value_share; first < KEY_TILE; first += 4u * VALUE_ROWS) {
            let slots = vec4<u32>(first) + VALUE_ROWS * vec4<u32>(0u, 1u, 2u, 3u);
            var values: array<vec4<f32>, 4>;
            // unroll
            for (var j = 0u; j < 4u; j++) {
                let k = key_start + slots[j];
                let at = value_row(tile, min(k, tile.key_end - 1u));
                let x = value_vector(at, 4u * value_lane);
                values[j] = select(vec4<f32>(), x, k < tile.key_end);
            }
            accumulate(slots, values, &sums);
        }
    }

    wg_parts[lane.index / THREADS_X] = sum_over_row(lane, vec4<f32>(row_sum)).x;
    // wg_parts is visible
    workgroupBarrier();
    row_sum = 0.0;
    for (var p = 0u; p < ROW_PARTS; p++) {
        row_sum += wg_parts[own * ROW_PARTS + p];
    }
    if (item == 0u && row < tile.rows) {
        let end = with_sink(tile, row, row_max, row_sum);
        wg_factors[own] = end.factor;
        if (has(WRITE_LOG_SUM_EXP)) {
            store_log_sum_exp(tile, row, end.log_sum_exp);
        }
    }
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        wg_sums[lane.index] = sums[r];
        // wg_sums and wg_factors are visible
        workgroupBarrier();
        if (lane.index < VALUE_LANES && tile.start + r < tile.rows) {
            var sum = vec4<f32>();
            for (var i = 0u; i < VALUE_ROWS; i++) {
                sum += wg_sums[i * VALUE_LANES + lane.index];
            }
            let first = output_row(tile, tile.start + r);
            // unroll
            for (var e = 0u; e < 4u; e++) {
                let d = 4u * lane.index + e;
                if (d < VALUE_DIM) {
                    output[first + d] = sum[e] * wg_factors[r];
                }
            }
        }
        // wg_sums is free
        workgroupBarrier();
    }
}
