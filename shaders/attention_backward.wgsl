// attention_backward: gradients of one side of attention, the rows, from the pairs that they form
// with the other side. Rows are queries (attention_backward_query.wgsl) or keys
// (attention_backward_key.wgsl); every row has two vectors, (query, grad_output) or (key, value).
//
// For a row r, over all others o (formulas of a pair in attention_backward_bindings.wgsl):
//     product = dot(first_r, first_o);  grad_weight = dot(second_r, second_o)
//     gradient_r += dproduct first_o;   second_gradient_r += weight second_o     (keys only)
// Two kernels, seven products, each sum in one invocation and in the order of the others: no
// atomics.
// Source: Dao et al. 2022 (FlashAttention), Alg. 4.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROW_TILE rows of one head (of keys: one key/value head), folded
// Workgroup   THREADS_X * THREADS_Y invocations; invocation (x, y) computes rows y + r * THREADS_Y
//             of the tile, of each the pairs with others 4x .. 4x + 3 and every THREADS_X-th
//             vector of the gradients from x on
// Memory      wg_stage: a chunk of both sides, then vectors of the others; wg_pairs: weights or
//             gradients of the products
// Holds       THREADS_X is a power of two; CHUNK % 4 == 0; ROW_TILE % 4 == 0; VECTORS * THREADS_X *
//             4 >= HEAD_DIM and VALUE_DIM; STAGED_OTHERS % 4 == 0 divides OTHER_TILE; with PREFETCH
//             an invocation stages VECTOR_ITEMS vectors of the others at once
// Precision   f32; a pair that is masked reaches no sum, be the other vector NaN
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_problem.wgsl,
//             attention_scores.wgsl, attention_loads*.wgsl, attention_uniform.wgsl,
//             attention_lane.wgsl, attention_backward_bindings.wgsl,
//             attention_backward_classes.wgsl, attention_backward_pairs.wgsl,
//             attention_backward_products.wgsl, attention_backward_query.wgsl or
//             attention_backward_key.wgsl

const VECTOR_PITCH: u32 = VECTORS * THREADS_X;
const STAGE_SIZE: u32 = max(PRODUCTS_SIZE, STAGED_OTHERS * VECTOR_PITCH);

alias Sums = array<array<vec4<f32>, VECTORS>, ROWS>;

var<workgroup> wg_nonfinite: atomic<u32>;

fn pair_factor(row: u32, other: u32) -> f32 {
    return wg_pairs[pair_index(row, other / 4u)][other % 4u];
}

const_assert !PREFETCH || VECTOR_ITEMS * WORKGROUP_SIZE == STAGED_OTHERS * VECTOR_PITCH;

alias Vectors = array<vec4<f32>, VECTOR_ITEMS>;

fn vector_item(tile: Tile, factors: Factors, first: u32, i: u32) -> vec4<f32> {
    let other = factors.others.x + first + i / VECTOR_PITCH;
    if (first < OTHER_TILE && other < factors.others.y) {
        return other_vector(tile, other, 4u * (i % VECTOR_PITCH), factors.second);
    }
    return vec4<f32>();
}

fn load_vectors(lane: Lane, tile: Tile, factors: Factors, first: u32) -> Vectors {
    var result: Vectors;
    // unroll
    for (var n = 0u; n < VECTOR_ITEMS; n++) {
        result[n] = vector_item(tile, factors, first, lane.index + n * WORKGROUP_SIZE);
    }
    return result;
}

fn store_vector(slot: u32, vector: vec4<f32>) {
    wg_stage[slot] = vector;
    if (MASKS_PAIRS) {
        if (is_nonfinite(vector)) {
            atomicStore(&wg_nonfinite, 1u);
        }
    }
}

// adds to the sums what is in wg_pairs, times the others' vectors
fn accumulate(lane: Lane, tile: Tile, factors: Factors, sums: ptr<function, Sums>) {
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;
    var next: Vectors;
    if (PREFETCH) {
        next = load_vectors(lane, tile, factors, 0u);
    }
    for (var first = 0u; first < OTHER_TILE; first += STAGED_OTHERS) {
        // wg_stage is free
        workgroupBarrier();
        if (PREFETCH) {
            // unroll
            for (var n = 0u; n < VECTOR_ITEMS; n++) {
                store_vector(lane.index + n * WORKGROUP_SIZE, next[n]);
            }
        } else {
            for (var i = lane.index; i < STAGED_OTHERS * VECTOR_PITCH; i += WORKGROUP_SIZE) {
                store_vector(i, vector_item(tile, factors, first, i));
            }
        }
        // wg_stage, wg_pairs and wg_nonfinite are visible
        workgroupBarrier();
        if (PREFETCH) {
            next = load_vectors(lane, tile, factors, first + STAGED_OTHERS);
        }
        let start = min(factors.others.x + first, factors.others.y);
        let count = min(STAGED_OTHERS, factors.others.y - start);
        if (MASKS_PAIRS && atomicLoad(&wg_nonfinite) != 0u) {
            // 0 * NaN is NaN: skip the pairs that add nothing
            for (var o = 0u; o < count; o++) {
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    let factor = pair_factor(y + r * THREADS_Y, first + o);
                    // as an integer: NaN is not 0
                    if ((bitcast<u32>(factor) << 1u) != 0u) {
                        // unroll
                        for (var c = 0u; c < VECTORS; c++) {
                            let at = o * VECTOR_PITCH + x + c * THREADS_X;
                            (*sums)[r][c] += factor * wg_stage[at];
                        }
                    }
                }
            }
        } else {
            // those past the count are zeros; a GPU's driver repeats the body if it knows how often
            for (var o = 0u; o < select(count, STAGED_OTHERS, PREFETCH); o += 4u) {
                var factor: Block;
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    factor[r] = wg_pairs[pair_index(y + r * THREADS_Y, (first + o) / 4u)];
                }
                // unroll
                for (var c = 0u; c < VECTORS; c++) {
                    let at = o * VECTOR_PITCH + x + c * THREADS_X;
                    let v0 = wg_stage[at];
                    let v1 = wg_stage[at + VECTOR_PITCH];
                    let v2 = wg_stage[at + 2u * VECTOR_PITCH];
                    let v3 = wg_stage[at + 3u * VECTOR_PITCH];
                    // unroll
                    for (var r = 0u; r < ROWS; r++) {
                        (*sums)[r][c] += factor[r].x * v0;
                        (*sums)[r][c] += factor[r].y * v1;
                        (*sums)[r][c] += factor[r].z * v2;
                        (*sums)[r][c] += factor[r].w * v3;
                    }
                }
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_backward(
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
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;
    if (lane.index == 0u) {
        atomicStore(&wg_nonfinite, 0u);
    }

    var tile = uniform_tile(lane, head_tile(place.batch, place.head));
    let rows = num_rows(tile);
    if (row_start >= rows) {
        return;
    }
    var sums: Sums;
    var second_sums: Sums;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var c = 0u; c < VECTORS; c++) {
            sums[r][c] = vec4<f32>();
            second_sums[r][c] = vec4<f32>();
        }
    }
    for (var g = 0u; g < place.num_heads; g++) {
        tile = uniform_tile(lane, head_tile(place.batch, place.head + g));
        let range = others_of(tile, row_start, min(row_start + ROW_TILE, rows));
        tile.key_end = tile.kv_len;
        var next = next_others(lane, tile, row_start, range.x, range.y);
        while (next.start < range.y) {
            let start = next.start;
            let block = next.block;
            let others = vec2<u32>(start, range.y);
            let first = Factors(row_start, others, false);
            let second = Factors(row_start, others, true);
            let product = products(lane, tile, first);
            let grad_weight = products(lane, tile, second);
            var grad_product: Block;
            let other = vec4<u32>(start + 4u * x) + vec4<u32>(0u, 1u, 2u, 3u);
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let at = pair_index(y + r * THREADS_Y, x);
                let row = row_start + y + r * THREADS_Y;
                let pair = gradients_of(tile, row, other, product[r], grad_weight[r], block);
                let inside = other < vec4<u32>(range.y);
                grad_product[r] = select(vec4<f32>(), pair.product, inside);
                if (ROWS_ARE_KEYS) {
                    wg_pairs[at] = select(vec4<f32>(), pair.weight, inside);
                }
            }
            if (ROWS_ARE_KEYS) {
                accumulate(lane, tile, second, &second_sums);
                // wg_pairs is free
                workgroupBarrier();
            }
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                wg_pairs[pair_index(y + r * THREADS_Y, x)] = grad_product[r];
            }
            accumulate(lane, tile, first, &sums);
            next = next_others(lane, tile, row_start, start + OTHER_TILE, range.y);
        }
    }

    // unroll
    for (var r = 0u; r < ROWS; r++) {
        let row = row_start + y + r * THREADS_Y;
        if (row < rows) {
            // unroll
            for (var c = 0u; c < VECTORS; c++) {
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    let d = 4u * (x + c * THREADS_X) + e;
                    if (d < HEAD_DIM) {
                        gradient[gradient_row(tile, row) + d] = sums[r][c][e];
                    }
                    if (ROWS_ARE_KEYS) {
                        if (d < VALUE_DIM) {
                            let at = second_gradient_row(tile, row) + d;
                            second_gradient[at] = second_sums[r][c][e];
                        }
                    }
                }
            }
        }
    }
}
