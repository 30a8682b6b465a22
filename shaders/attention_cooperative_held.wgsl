// attention_cooperative_held: attention whose products are left to the device's matrix units, with
// the queries and the weighted sums of the values held in matrices from the first key to the last.
// Same mathematics as attention.wgsl; attention_cooperative.wgsl has the form for longer rows.
//
// The elements of a cooperative matrix belong to no invocation in particular, so the sums of a row
// cannot be rescaled where they are. A row's weights are exp(s - m) for an m that grows only when a
// score has passed it by more than SLACK (in log2 units; f16 has room for that): rare after the
// first keys. Then the sums go through workgroup memory, where invocations rescale them, and
// back; so they do when a value is not finite, which is added there.
// Source: Dao 2023 (FlashAttention-2) for the division of rows among subgroups, Shah et al. 2024
// (FlashAttention-3); the rare rescaling as in FlashAttention-4.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROWS rows of one head and split, folded to two dimensions
// Workgroup   SUBGROUPS subgroups, each with EDGE rows; of ROW_LANES invocations that share a row,
//             each has every ROW_LANES-th vector of its scores and of its output
// Memory      wg_stage: queries, then keys and values in turn; wg_products: scores, and sums on
//             their way; wg_weights: exp(s - m); wg_flags: what a subgroup has met
// Holds       the subgroup size is a constant of the device; ROWS == SUBGROUPS * EDGE;
//             HEAD_PAD == HEAD_TILES * EDGE and VALUE_PAD == VALUE_TILES * EDGE are at least
//             HEAD_DIM and VALUE_DIM; EDGE divides KEYS; ITEMS * ROW_LANES * 4 == KEYS; of the
//             vectors of KEYS keys or values an invocation stages KEY_ITEMS or VALUE_ITEMS
// Precision   as attention_cooperative.wgsl
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_bindings.wgsl,
//             attention_problem.wgsl, attention_rows.wgsl, attention_loads*.wgsl,
//             attention_scores.wgsl, attention_uniform.wgsl, attention_lane.wgsl,
//             cooperative_*.wgsl, attention_cooperative_stage.wgsl,
//             attention_cooperative_prefetch.wgsl

const WORKGROUP_SIZE: u32 = SUBGROUPS * SUBGROUP_SIZE;
const ROW_TILE: u32 = ROWS;
const KEY_TILE: u32 = KEYS;
const ROW_LANES: u32 = WORKGROUP_SIZE / ROWS;

// in elements; longer than a row, so that the rows of a tile lie in different banks
const STAGE_PITCH: u32 = max(HEAD_PAD, VALUE_PAD) + 8u;
const WEIGHT_PITCH: u32 = KEYS + 8u;
const PRODUCT_PITCH: u32 = KEYS + 4u;

// none where dropout makes weights larger still
const SLACK: f32 = select(6.0, 0.0, DROPOUT);

var<workgroup> wg_stage: array<f16, KEYS * STAGE_PITCH>;
var<workgroup> wg_weights: array<f16, ROWS * WEIGHT_PITCH>;
var<workgroup> wg_products: array<f32, ROWS * PRODUCT_PITCH>;
var<workgroup> wg_flags: array<vec4<u32>, SUBGROUPS>;

fn product_at(at: u32) -> vec4<f32> {
    return vec4<f32>(
        wg_products[at], wg_products[at + 1u], wg_products[at + 2u], wg_products[at + 3u],
    );
}

@diagnostic(off, derivative_uniformity)
@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_cooperative_held(
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
    // of this subgroup; own: of this invocation
    let subgroup = lane.index / SUBGROUP_SIZE;
    let first_row = subgroup * EDGE;
    let own = lane.index / ROW_LANES;
    let item = lane.index % ROW_LANES;
    let row = tile.start + own;

    // as many rows at once as wg_stage holds
    var query_tiles: array<Left, HEAD_TILES>;
    for (var start = 0u; start < ROWS; start += KEYS) {
        // wg_stage is free
        workgroupBarrier();
        for (var i = lane.index; i < KEYS * HEAD_PAD / 4u; i += WORKGROUP_SIZE) {
            stage(i, HEAD_PAD, vec4<f16>(query_item(tile, start * HEAD_PAD / 4u + i)));
        }
        // wg_stage is visible
        workgroupBarrier();
        if (first_row / KEYS == start / KEYS) {
            // unroll
            for (var t = 0u; t < HEAD_TILES; t++) {
                query_tiles[t] = coopLoadT<Left>(
                    &wg_stage[(first_row - start) * STAGE_PITCH + t * EDGE], STAGE_PITCH,
                );
            }
        }
    }
    var acc: array<Sum, VALUE_TILES>;
    // unroll
    for (var t = 0u; t < VALUE_TILES; t++) {
        acc[t] = Sum();
    }
    // what is staged next, on its way while products are computed
    var next_keys = load_keys(lane, tile, tile.key_start);
    var row_max = MASKED;
    // of this invocation's keys only, until the end
    var row_sum = 0.0;

    for (var key_start = tile.key_start; key_start < tile.key_end; key_start += KEYS) {
        let block = uniform_class(lane, block_class(tile, key_start));
        if (CLASSES && block == CLASS_NONE) {
            next_keys = load_keys(lane, tile, key_start + KEYS);
            continue;
        }
        // wg_stage and wg_products are free
        workgroupBarrier();
        store_keys(lane, next_keys);
        // wg_stage is visible
        workgroupBarrier();
        let next_values = load_values(lane, tile, key_start);
        // pass 1: products of queries and keys
        for (var k = 0u; k < KEYS; k += EDGE) {
            var sum = Sum();
            // unroll
            for (var t = 0u; t < HEAD_TILES; t++) {
                // the keys are the columns of the second factor
                let right = coopLoad<Right>(&wg_stage[k * STAGE_PITCH + t * EDGE], STAGE_PITCH);
                sum = coopMultiplyAdd(query_tiles[t], right, sum);
            }
            coopStoreT(sum, &wg_products[first_row * PRODUCT_PITCH + k], PRODUCT_PITCH);
        }
        // wg_products is visible, wg_stage is free
        workgroupBarrier();

        // pass 2: mask, maximum, weights
        store_values(lane, next_values);
        var flags = next_values.flags;
        var score: array<vec4<f32>, ITEMS>;
        var new_max = row_max;
        // unroll
        for (var n = 0u; n < ITEMS; n++) {
            let slot = 4u * (item + n * ROW_LANES);
            let keys = vec4<u32>(key_start + slot) + vec4<u32>(0u, 1u, 2u, 3u);
            let product = product_at(own * PRODUCT_PITCH + slot);
            score[n] = scores(tile, Pairs(vec4<u32>(row), keys), product, block);
            new_max = max(new_max, largest(score[n]));
        }
        for (var distance = 1u; distance < ROW_LANES; distance *= 2u) {
            new_max = max(new_max, subgroupShuffleXor(new_max, distance));
        }
        var rescale = 1.0;
        if (new_max > row_max + SLACK) {
            rescale = exp2(row_max - new_max);
            row_max = new_max;
            row_sum *= rescale;
            flags |= GROWN;
        }
        // unroll
        for (var n = 0u; n < ITEMS; n++) {
            let slot = 4u * (item + n * ROW_LANES);
            let before = weights_of(score[n], row_max);
            row_sum += dot(before, vec4<f32>(1.0));
            let weight = after_dropout(tile, row, key_start + slot, before);
            // unroll
            for (var e = 0u; e < 4u; e++) {
                wg_weights[own * WEIGHT_PITCH + slot + e] = f16(weight[e]);
            }
        }
        flags = subgroupOr(flags);
        if (lane.index % SUBGROUP_SIZE == 0u) {
            wg_flags[subgroup] = vec4<u32>(flags);
        }
        // wg_stage, wg_weights and wg_flags are visible, wg_products is free
        let met = workgroupUniformLoad(&wg_flags);
        flags = 0u;
        // unroll
        for (var s = 0u; s < SUBGROUPS; s++) {
            flags |= met[s].x;
        }

        next_keys = load_keys(lane, tile, key_start + KEYS);

        // pass 3: weighted sum of the values, after what has to be done to the sums
        for (var first = 0u; flags != 0u && first < VALUE_PAD; first += KEYS) {
            // unroll
            for (var t = 0u; t < VALUE_TILES; t++) {
                if (t * EDGE / KEYS == first / KEYS) {
                    let at = first_row * PRODUCT_PITCH + t * EDGE - first;
                    coopStoreT(acc[t], &wg_products[at], PRODUCT_PITCH);
                }
            }
            // wg_products is visible
            workgroupBarrier();
            for (var d = 4u * item; d < min(KEYS, VALUE_PAD - first); d += 4u * ROW_LANES) {
                let at = own * PRODUCT_PITCH + d;
                var sum = product_at(at) * rescale;
                if ((flags & NONFINITE) != 0u) {
                    sum += nonfinite_sum(tile, key_start, own, first + d);
                }
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    wg_products[at + e] = sum[e];
                }
            }
            // wg_products is visible
            workgroupBarrier();
            // unroll
            for (var t = 0u; t < VALUE_TILES; t++) {
                if (t * EDGE / KEYS == first / KEYS) {
                    let at = first_row * PRODUCT_PITCH + t * EDGE - first;
                    acc[t] = coopLoadT<Sum>(&wg_products[at], PRODUCT_PITCH);
                }
            }
            // wg_products is free
            workgroupBarrier();
        }
        for (var k = 0u; k < KEYS; k += EDGE) {
            let left = coopLoadT<Left>(&wg_weights[first_row * WEIGHT_PITCH + k], WEIGHT_PITCH);
            // unroll
            for (var t = 0u; t < VALUE_TILES; t++) {
                let right = coopLoadT<Right>(&wg_stage[k * STAGE_PITCH + t * EDGE], STAGE_PITCH);
                acc[t] = coopMultiplyAdd(left, right, acc[t]);
            }
        }
    }

    for (var distance = 1u; distance < ROW_LANES; distance *= 2u) {
        row_sum += subgroupShuffleXor(row_sum, distance);
    }
    let end = with_sink(tile, row, row_max, row_sum);
    for (var first = 0u; first < VALUE_PAD; first += KEYS) {
        // wg_products is free
        workgroupBarrier();
        // unroll
        for (var t = 0u; t < VALUE_TILES; t++) {
            if (t * EDGE / KEYS == first / KEYS) {
                let at = first_row * PRODUCT_PITCH + t * EDGE - first;
                coopStoreT(acc[t], &wg_products[at], PRODUCT_PITCH);
            }
        }
        // wg_products is visible
        workgroupBarrier();
        for (var d = item; d < min(KEYS, VALUE_DIM - first); d += ROW_LANES) {
            if (row < tile.rows) {
                let sum = wg_products[own * PRODUCT_PITCH + d];
                output[output_row(tile, row) + first + d] = sum * end.factor;
            }
        }
    }
    if (item == 0u && row < tile.rows && has(WRITE_LOG_SUM_EXP)) {
        store_log_sum_exp(tile, row, end.log_sum_exp);
    }
}
