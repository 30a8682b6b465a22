// attention_backward_cooperative: gradients of attention whose products are left to the device's
// matrix units. Same mathematics as attention_backward.wgsl: rows of one side from their pairs with
// the others; five matrix products for keys, three for queries.
//
// The rows' vectors and the sums of their gradients stay in matrices from the first other to the
// last. Those of a row's SPLIT subgroups take turns at the products and at the gradients.
// Factors that are f32 are scaled by powers of two that the workgroup's largest magnitude asks for,
// so that no magnitude of the gradients is beyond f16. One that outgrows its scale is rare: then
// the sums go through workgroup memory, where invocations rescale them, and back.
// Source: Dao et al. 2022 (FlashAttention), Alg. 4; Dao 2023 for the division among subgroups.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROWS rows of one head (of keys: one key/value head), folded
// Workgroup   SUBGROUPS subgroups, each SPLIT with EDGE rows; of ROW_LANES invocations that share a
//             row, each has every ROW_LANES-th vector of its pairs
// Memory      wg_stage: the others' vectors; wg_products: both products, and sums on their way;
//             wg_factors: gradients of products, of keys weights behind them; wg_met: see Met
// Holds       the subgroup size is a constant of the device; ROWS == SUBGROUPS / SPLIT * EDGE;
//             HEAD_PAD and VALUE_PAD are multiples of SPLIT * EDGE, at least HEAD_DIM and
//             VALUE_DIM, and PAIR_TILES * EDGE together; SUM_TILES * SPLIT * EDGE == SUM_PAD;
//             SPLIT * EDGE divides OTHERS; ITEMS * ROW_LANES * 4 == OTHERS; an invocation stages
//             STAGE_ITEMS of the vectors of OTHERS others
// Precision   factors f16, sums f32. Of grad_output and of gradients of products what is 2^25 below
//             the workgroup's largest loses bits; of weights what is below 2^-27. Elements of
//             query, key and value must be within f16's range
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_problem.wgsl,
//             attention_scores.wgsl, attention_loads*.wgsl, attention_uniform.wgsl,
//             attention_lane.wgsl, cooperative_*.wgsl, attention_backward_bindings.wgsl,
//             attention_backward_classes.wgsl, attention_backward_pairs.wgsl,
//             attention_backward_query.wgsl or attention_backward_key.wgsl,
//             attention_backward_cooperative_stage.wgsl, attention_backward_cooperative_sums.wgsl

const WORKGROUP_SIZE: u32 = SUBGROUPS * SUBGROUP_SIZE;
const ROW_TILE: u32 = ROWS;
const OTHER_TILE: u32 = OTHERS;
const ROW_LANES: u32 = WORKGROUP_SIZE / ROWS;

// of a row: both vectors; the gradients, one or two
const PAD: u32 = HEAD_PAD + VALUE_PAD;
const SUM_PAD: u32 = select(HEAD_PAD, PAD, ROWS_ARE_KEYS);

// in elements; longer than a row, so that the rows of a tile lie in different banks
const STAGE_PITCH: u32 = PAD + 8u;
const FACTOR_PITCH: u32 = OTHERS + 8u;
const PRODUCT_PITCH: u32 = OTHERS + 4u;
// where the second products and the weights begin
const SECOND_PRODUCTS: u32 = ROWS * PRODUCT_PITCH;
const WEIGHTS: u32 = ROWS * FACTOR_PITCH;

// whole multiples of 16 bytes, see attention_cooperative_stage.wgsl
var<workgroup> wg_stage: array<f16, OTHERS * STAGE_PITCH>;
var<workgroup> wg_factors: array<f16, select(1u, 2u, ROWS_ARE_KEYS) * WEIGHTS>;
var<workgroup> wg_products: array<f32, 2u * SECOND_PRODUCTS>;
var<workgroup> wg_met: array<vec4<u32>, SUBGROUPS>;

fn product_at(at: u32) -> vec4<f32> {
    return vec4<f32>(
        wg_products[at], wg_products[at + 1u], wg_products[at + 2u], wg_products[at + 3u],
    );
}

fn store_factors(at: u32, x: vec4<f32>) {
    // unroll
    for (var e = 0u; e < 4u; e++) {
        wg_factors[at + e] = f16(x[e]);
    }
}

@diagnostic(off, derivative_uniformity)
@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_backward_cooperative(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let place = place_of(group);
    let row_start = place.row_start;
    var tile = uniform_tile(lane, head_tile(place.batch, place.head));
    let rows = num_rows(tile);
    if (row_start >= rows) {
        return;
    }
    // of this subgroup; own: of this invocation
    let first_row = lane.index / SUBGROUP_SIZE / SPLIT * EDGE;
    let part = lane.index / SUBGROUP_SIZE % SPLIT;
    let own = lane.index / ROW_LANES;
    let item = lane.index % ROW_LANES;
    let row = row_start + own;

    // what grad_output, gradients of products and weights are multiplied by as factors
    var grad_output_scale = fitting(0u);
    var scale = fitting(0u);
    let weight_scale = 8192.0 / power_of_two(params.dropout_scale);

    if (!ROWS_ARE_KEYS) {
        var met: Met;
        for (var first = 0u; first < ROWS; first += OTHERS) {
            met = both(met, load_staged(lane, tile, true, row_start + first, rows).met);
        }
        grad_output_scale = fitting(meet(lane, met).grad_output);
    }
    var row_tiles: array<Left, PAIR_TILES>;
    for (var first = 0u; first < ROWS; first += OTHERS) {
        let staged = load_staged(lane, tile, true, row_start + first, rows);
        // wg_stage is free
        workgroupBarrier();
        store_staged(lane, staged, true, grad_output_scale);
        // wg_stage is visible
        workgroupBarrier();
        if (first_row / OTHERS == first / OTHERS) {
            // unroll
            for (var t = 0u; t < PAIR_TILES; t++) {
                let at = (first_row - first) * STAGE_PITCH + t * EDGE;
                row_tiles[t] = coopLoadT<Left>(&wg_stage[at], STAGE_PITCH);
            }
        }
    }
    var sums: Sums;
    // unroll
    for (var t = 0u; t < SUM_TILES; t++) {
        sums[t] = Sum();
    }

    for (var g = 0u; g < place.num_heads; g++) {
        tile = uniform_tile(lane, head_tile(place.batch, place.head + g));
        let range = others_of(tile, row_start, min(row_start + ROW_TILE, rows));
        tile.key_end = tile.kv_len;
        // what is staged next, on its way while products are computed
        var others = next_others(lane, tile, row_start, range.x, range.y);
        var next = load_staged(lane, tile, false, others.start, range.y);
        var met = meet(lane, next.met);

        while (others.start < range.y) {
            let start = others.start;
            let block = others.block;
            // all of workgroup memory is free
            workgroupBarrier();
            let nonfinite = met.nonfinite != 0u;
            if (outgrown(met.grad_output, grad_output_scale)) {
                let fit = fitting(met.grad_output);
                rescale(lane, &sums, 1.0, fit / grad_output_scale);
                grad_output_scale = fit;
            }
            store_staged(lane, next, false, grad_output_scale);
            // wg_stage is visible
            workgroupBarrier();
            others = next_others(lane, tile, row_start, start + OTHERS, range.y);
            next = load_staged(lane, tile, false, others.start, range.y);

            // pass 1: products of both vectors
            for (var k = part * EDGE; k < OTHERS; k += SPLIT * EDGE) {
                var product = Sum();
                var grad_weight = Sum();
                // unroll
                for (var t = 0u; t < PAIR_TILES; t++) {
                    // the others are the columns of the second factor
                    let at = k * STAGE_PITCH + t * EDGE;
                    let right = coopLoad<Right>(&wg_stage[at], STAGE_PITCH);
                    if (t * EDGE < HEAD_PAD) {
                        product = coopMultiplyAdd(row_tiles[t], right, product);
                    } else {
                        grad_weight = coopMultiplyAdd(row_tiles[t], right, grad_weight);
                    }
                }
                let at = first_row * PRODUCT_PITCH + k;
                coopStoreT(product, &wg_products[at], PRODUCT_PITCH);
                coopStoreT(grad_weight, &wg_products[SECOND_PRODUCTS + at], PRODUCT_PITCH);
            }
            // wg_products is visible
            workgroupBarrier();

            // pass 2: weights, gradients of the products
            let unscale = 1.0 / grad_output_scale;
            var grad_product: array<vec4<f32>, ITEMS>;
            var largest = 0u;
            // unroll
            for (var n = 0u; n < ITEMS; n++) {
                let slot = 4u * (item + n * ROW_LANES);
                let other = vec4<u32>(start + slot) + vec4<u32>(0u, 1u, 2u, 3u);
                let at = own * PRODUCT_PITCH + slot;
                let grad_weight = product_at(SECOND_PRODUCTS + at) * unscale;
                let pair = gradients_of(tile, row, other, product_at(at), grad_weight, block);
                let inside = other < vec4<u32>(range.y);
                grad_product[n] = select(vec4<f32>(), pair.product, inside);
                largest = max(largest, largest_bits(grad_product[n]));
                if (ROWS_ARE_KEYS) {
                    // what is not finite in grad_output is not in wg_stage any more
                    let finite = is_finite(grad_product[n]);
                    let weight = min(weight_scale * pair.weight, vec4<f32>(MOST));
                    let seen = select(vec4<f32>(), weight, inside);
                    let at = WEIGHTS + own * FACTOR_PITCH + slot;
                    store_factors(at, select(grad_product[n], seen, finite));
                }
            }
            // wg_products is free
            met = meet(lane, both(next.met, Met(0u, 0u, largest)));
            if (outgrown(met.product, scale)) {
                let fit = fitting(met.product);
                rescale(lane, &sums, fit / scale, 1.0);
                scale = fit;
            }
            // unroll
            for (var n = 0u; n < ITEMS; n++) {
                let slot = 4u * (item + n * ROW_LANES);
                store_factors(own * FACTOR_PITCH + slot, scale * grad_product[n]);
            }
            if (nonfinite) {
                keep_finite(lane);
            }
            // wg_stage and wg_factors are visible
            workgroupBarrier();

            // pass 3: sums of the others' vectors
            for (var k = 0u; k < OTHERS; k += EDGE) {
                let at = first_row * FACTOR_PITCH + k;
                let left = coopLoadT<Left>(&wg_factors[at], FACTOR_PITCH);
                var weights = left;
                if (ROWS_ARE_KEYS) {
                    weights = coopLoadT<Left>(&wg_factors[WEIGHTS + at], FACTOR_PITCH);
                }
                // unroll
                for (var t = 0u; t < SUM_TILES; t++) {
                    let first = t * SPLIT * EDGE;
                    let at = k * STAGE_PITCH + first + part * EDGE;
                    let right = coopLoadT<Right>(&wg_stage[at], STAGE_PITCH);
                    if (first < HEAD_PAD) {
                        sums[t] = coopMultiplyAdd(left, right, sums[t]);
                    } else {
                        sums[t] = coopMultiplyAdd(weights, right, sums[t]);
                    }
                }
            }
        }
    }

    for (var first = 0u; first < SUM_PAD; first += OTHERS) {
        // wg_products is free
        workgroupBarrier();
        store_sums(lane, &sums, first);
        // wg_products is visible
        workgroupBarrier();
        for (var d = first + item; d < first + OTHERS; d += ROW_LANES) {
            let sum = wg_products[own * PRODUCT_PITCH + d - first];
            if (row < rows && d < HEAD_DIM) {
                gradient[gradient_row(tile, row) + d] = sum / scale;
            }
            if (ROWS_ARE_KEYS) {
                if (row < rows && d >= HEAD_PAD && d < HEAD_PAD + VALUE_DIM) {
                    let at = second_gradient_row(tile, row) + d - HEAD_PAD;
                    second_gradient[at] = sum / weight_scale / grad_output_scale;
                }
            }
        }
    }
}
