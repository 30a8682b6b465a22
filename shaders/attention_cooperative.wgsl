// attention_cooperative: attention whose two products are left to the device's matrix units: f16
// factors, f32 sums, for rows too long for attention_cooperative_held.wgsl. Same mathematics as
// attention.wgsl.
//
// The elements of a cooperative matrix belong to no invocation in particular. So products go
// through workgroup memory, invocations mask, weigh and add them, and the sums of the values stay
// in registers: each block's share is computed from zero, and added to what was there, rescaled.
// Source: the flash attention of llama.cpp's Vulkan backend, for that order.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROWS rows of one head and split, folded to two dimensions
// Workgroup   SUBGROUPS subgroups, which share the tiles of EDGE x EDGE products; of ROW_LANES
//             invocations that share a row, each has every ROW_LANES-th vector of its scores and of
//             its output
// Memory      wg_query: the rows; wg_stage: keys, then values; wg_products: products of both kinds;
//             wg_weights: exp(s - m)
// Holds       the subgroup size is a constant of the device; EDGE divides ROWS, KEYS, HEAD_PAD and
//             VALUE_PAD, which are at least HEAD_DIM and VALUE_DIM; ITEMS * ROW_LANES * 4 == KEYS;
//             VALUE_ITEMS * ROW_LANES * 4 >= VALUE_PAD
// Precision   f32 but for the factors of the products, which are f16: queries, keys, values and
//             weights, of which those below 2^-24 of the row's largest so far are 0; a value whose
//             weight is masked to 0 does not reach the sum, be it NaN
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_bindings.wgsl,
//             attention_problem.wgsl, attention_rows.wgsl, attention_loads*.wgsl,
//             attention_scores.wgsl, attention_uniform.wgsl, attention_lane.wgsl,
//             cooperative_*.wgsl, attention_cooperative_stage.wgsl,
//             attention_cooperative_products.wgsl

const WORKGROUP_SIZE: u32 = SUBGROUPS * SUBGROUP_SIZE;
const ROW_TILE: u32 = ROWS;
const KEY_TILE: u32 = KEYS;
const ROW_LANES: u32 = WORKGROUP_SIZE / ROWS;

// in elements; longer than a row, so that the rows of a tile lie in different banks
const QUERY_PITCH: u32 = HEAD_PAD + 8u;
const STAGE_PITCH: u32 = max(HEAD_PAD, VALUE_PAD) + 8u;
const WEIGHT_PITCH: u32 = KEYS + 8u;
const PRODUCT_PITCH: u32 = max(KEYS, VALUE_PAD) + 4u;

var<workgroup> wg_query: array<f16, ROWS * QUERY_PITCH>;
var<workgroup> wg_stage: array<f16, KEYS * STAGE_PITCH>;
var<workgroup> wg_weights: array<f16, ROWS * WEIGHT_PITCH>;
var<workgroup> wg_products: array<f32, ROWS * PRODUCT_PITCH>;
var<workgroup> wg_parts: array<f32, WORKGROUP_SIZE>;
// [0]: whether some value of the block is NaN or infinite
var<workgroup> wg_nonfinite: array<atomic<u32>, 4>;

// the maximum or the sum over the invocations that share a row
fn over_row(lane: Lane, x: f32, sum: bool) -> f32 {
    wg_parts[lane.index] = x;
    // wg_parts is visible
    workgroupBarrier();
    let first = lane.index / ROW_LANES * ROW_LANES;
    var result = wg_parts[first];
    for (var i = 1u; i < ROW_LANES; i++) {
        let other = wg_parts[first + i];
        result = select(max(result, other), result + other, sum);
    }
    // wg_parts is free
    workgroupBarrier();
    return result;
}

@diagnostic(off, derivative_uniformity)
@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_cooperative(
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
    let subgroup = lane.index / SUBGROUP_SIZE;
    let own = lane.index / ROW_LANES;
    let item = lane.index % ROW_LANES;
    let row = tile.start + own;
    for (var i = lane.index; i < ROWS * HEAD_PAD / 4u; i += WORKGROUP_SIZE) {
        let at = i / (HEAD_PAD / 4u) * QUERY_PITCH + 4u * (i % (HEAD_PAD / 4u));
        let x = query_item(tile, i);
        // unroll
        for (var e = 0u; e < 4u; e++) {
            wg_query[at + e] = f16(x[e]);
        }
    }
    var row_max = MASKED;
    // of this invocation's keys only, until the end
    var row_sum = 0.0;
    var acc: array<vec4<f32>, VALUE_ITEMS>;
    // unroll
    for (var c = 0u; c < VALUE_ITEMS; c++) {
        acc[c] = vec4<f32>();
    }

    for (var key_start = tile.key_start; key_start < tile.key_end; key_start += KEYS) {
        let block = uniform_class(lane, block_class(tile, key_start));
        if (CLASSES && block == CLASS_NONE) {
            continue;
        }
        // wg_stage and wg_products are free
        workgroupBarrier();
        for (var i = lane.index; i < KEYS * HEAD_PAD / 4u; i += WORKGROUP_SIZE) {
            stage(i, HEAD_PAD, vec4<f16>(key_item(tile, key_start, i)));
        }
        if (lane.index == 0u) {
            atomicStore(&wg_nonfinite[0], 0u);
        }
        // wg_query and wg_stage are visible
        workgroupBarrier();
        // pass 1: products of queries and keys
        products_of_keys(subgroup);
        // wg_products is visible, wg_stage is free
        workgroupBarrier();

        // pass 2: mask, new maximum, weights
        for (var i = lane.index; i < KEYS * VALUE_PAD / 4u; i += WORKGROUP_SIZE) {
            let value = value_item(tile, key_start, i);
            if (is_nonfinite(value)) {
                atomicStore(&wg_nonfinite[0], 1u);
            }
            stage(i, VALUE_PAD, vec4<f16>(finite_part(value)));
        }
        var score: array<vec4<f32>, ITEMS>;
        var new_max = row_max;
        // unroll
        for (var n = 0u; n < ITEMS; n++) {
            let slot = 4u * (item + n * ROW_LANES);
            let at = own * PRODUCT_PITCH + slot;
            let product = vec4<f32>(
                wg_products[at], wg_products[at + 1u], wg_products[at + 2u], wg_products[at + 3u],
            );
            let keys = vec4<u32>(key_start + slot) + vec4<u32>(0u, 1u, 2u, 3u);
            score[n] = scores(tile, Pairs(vec4<u32>(row), keys), product, block);
            new_max = max(new_max, largest(score[n]));
        }
        new_max = over_row(lane, new_max, false);
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
                wg_weights[own * WEIGHT_PITCH + slot + e] = f16(weight[e]);
            }
        }
        // unroll
        for (var c = 0u; c < VALUE_ITEMS; c++) {
            acc[c] *= rescale;
        }
        // wg_stage, wg_weights and wg_nonfinite are visible, wg_products is free
        workgroupBarrier();

        // pass 3: weighted sum of the values
        products_of_values(subgroup);
        // wg_products is visible
        workgroupBarrier();
        // unroll
        for (var c = 0u; c < VALUE_ITEMS; c++) {
            let d = 4u * (item + c * ROW_LANES);
            if (d < VALUE_PAD) {
                let at = own * PRODUCT_PITCH + d;
                acc[c] += vec4<f32>(
                    wg_products[at], wg_products[at + 1u],
                    wg_products[at + 2u], wg_products[at + 3u],
                );
                if (atomicLoad(&wg_nonfinite[0]) != 0u) {
                    acc[c] += nonfinite_sum(tile, key_start, own, d);
                }
            }
        }
    }

    row_sum = over_row(lane, row_sum, true);
    if (row < tile.rows) {
        let first = output_row(tile, row);
        let end = with_sink(tile, row, row_max, row_sum);
        // unroll
        for (var c = 0u; c < VALUE_ITEMS; c++) {
            // unroll
            for (var e = 0u; e < 4u; e++) {
                let d = 4u * (item + c * ROW_LANES) + e;
                if (d < VALUE_DIM) {
                    output[first + d] = acc[c][e] * end.factor;
                }
            }
        }
        if (item == 0u && has(WRITE_LOG_SUM_EXP)) {
            store_log_sum_exp(tile, row, end.log_sum_exp);
        }
    }
}
