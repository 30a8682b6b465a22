// attention_backward_broadcast: gradients of one side of attention with whole rows in one
// invocation, for devices whose lanes are the registers of a CPU. Same result as
// attention_backward.wgsl.
//
// Every invocation holds both vectors of four rows and the sums of their gradients, as the
// components of vectors; each lane of a subgroup loads one of LANES others and hands its elements
// round.
// Formulas and source as in attention_backward.wgsl.
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROW_TILE rows of one head (of keys: one key/value head), folded
// Workgroup   WORKGROUP_SIZE invocations; invocation i computes rows 4i .. 4i + 3
// Memory      none
// Holds       what attention_hand_round.wgsl asks for; HEAD_VECTORS * 4 >= HEAD_DIM;
//             VALUE_VECTORS * 4 >= VALUE_DIM
// Precision   f32; a pair that is masked reaches no sum, be the other vector NaN
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_problem.wgsl,
//             attention_scores.wgsl, attention_loads*.wgsl, attention_uniform.wgsl,
//             attention_hand_round.wgsl, attention_backward_bindings.wgsl,
//             attention_backward_classes.wgsl, attention_backward_query.wgsl or
//             attention_backward_key.wgsl

const ROW_TILE: u32 = 4u * WORKGROUP_SIZE;
const OTHER_TILE: u32 = LANES;

// vectors of four elements of four rows: component r of vector e is element e of row r
fn rows_vector(tile: Tile, row: vec4<u32>, d: u32, second: bool) -> array<vec4<f32>, 4> {
    let last = vec4<u32>(max(num_rows(tile), 1u) - 1u);
    let own = min(row, last);
    let a = row_vector(tile, own.x, d, second);
    let b = row_vector(tile, own.y, d, second);
    let c = row_vector(tile, own.z, d, second);
    let e = row_vector(tile, own.w, d, second);
    return array<vec4<f32>, 4>(
        vec4<f32>(a.x, b.x, c.x, e.x), vec4<f32>(a.y, b.y, c.y, e.y),
        vec4<f32>(a.z, b.z, c.z, e.z), vec4<f32>(a.w, b.w, c.w, e.w),
    );
}

// a vector of this lane's other, as it may enter the sums: 0 * NaN is NaN
fn finite_vector(tile: Tile, other: u32, d: u32, second: bool) -> vec4<f32> {
    let x = other_vector(tile, other, d, second);
    if (MASKS_PAIRS) {
        return select(vec4<f32>(), x, is_finite(x));
    }
    return x;
}

// what dropout keeps of the pairs of four rows with LANES others
fn kept_pairs(tile: Tile, row: vec4<u32>, start: u32) -> array<vec4<bool>, LANES> {
    var keep: array<vec4<bool>, LANES>;
    if (DROPOUT) {
        if (ROWS_ARE_KEYS) {
            // unroll
            for (var j = 0u; j < LANES; j++) {
                keep[j] = kept(tile, start + j, row.x / 4u);
            }
        } else {
            for (var q = 0u; q < LANES; q += 4u) {
                // unroll
                for (var r = 0u; r < 4u; r++) {
                    let four = kept(tile, row[r], (start + q) / 4u);
                    // unroll
                    for (var e = 0u; e < 4u; e++) {
                        keep[q + e][r] = four[e];
                    }
                }
            }
        }
    }
    return keep;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_backward_broadcast(
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
    let row = vec4<u32>(row_start + 4u * lane.index) + vec4<u32>(0u, 1u, 2u, 3u);

    var first: array<array<vec4<f32>, 4>, HEAD_VECTORS>;
    var second: array<array<vec4<f32>, 4>, VALUE_VECTORS>;
    var sums: array<array<vec4<f32>, 4>, HEAD_VECTORS>;
    var second_sums: array<array<vec4<f32>, 4>, VALUE_VECTORS>;
    // unroll
    for (var v = 0u; v < HEAD_VECTORS; v++) {
        first[v] = rows_vector(tile, row, 4u * v, false);
        sums[v] = array<vec4<f32>, 4>();
    }
    // unroll
    for (var v = 0u; v < VALUE_VECTORS; v++) {
        second[v] = rows_vector(tile, row, 4u * v, true);
        second_sums[v] = array<vec4<f32>, 4>();
    }

    for (var g = 0u; g < place.num_heads; g++) {
        tile = uniform_tile(lane, head_tile(place.batch, place.head + g));
        let range = others_of(tile, row_start, min(row_start + ROW_TILE, rows));
        tile.key_end = tile.kv_len;
        var own_log_sum_exp: vec4<f32>;
        var own_delta: vec4<f32>;
        if (!ROWS_ARE_KEYS) {
            // unroll
            for (var r = 0u; r < 4u; r++) {
                let own = statistics(tile, row[r]);
                own_log_sum_exp[r] = own.x;
                own_delta[r] = own.y;
            }
        }
        var next = next_others(lane, tile, row_start, range.x, range.y);
        while (next.start < range.y) {
            let start = next.start;
            let block = next.block;
            // past the end the last one stands in, and is left out below
            let other = min(start + lane.subgroup_index, range.y - 1u);

            // pass 1: products of the pairs
            var product: array<vec4<f32>, LANES>;
            var grad_weight: array<vec4<f32>, LANES>;
            // unroll
            for (var j = 0u; j < LANES; j++) {
                product[j] = vec4<f32>();
                grad_weight[j] = vec4<f32>();
            }
            // unroll
            for (var v = 0u; v < HEAD_VECTORS; v++) {
                let x = other_vector(tile, other, 4u * v, false);
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    let all = hand_round(x[e]);
                    // unroll
                    for (var j = 0u; j < LANES; j++) {
                        product[j] += first[v][e] * all[j];
                    }
                }
            }
            // unroll
            for (var v = 0u; v < VALUE_VECTORS; v++) {
                let x = other_vector(tile, other, 4u * v, true);
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    let all = hand_round(x[e]);
                    // unroll
                    for (var j = 0u; j < LANES; j++) {
                        grad_weight[j] += second[v][e] * all[j];
                    }
                }
            }

            // pass 2: from products to their gradients, from gradients of weights to weights
            let keep = kept_pairs(tile, row, start);
            var log_sum_exps: array<f32, LANES>;
            var deltas: array<f32, LANES>;
            if (ROWS_ARE_KEYS) {
                let own = statistics(tile, other);
                log_sum_exps = hand_round(own.x);
                deltas = hand_round(own.y);
            }
            // unroll
            for (var j = 0u; j < LANES; j++) {
                var pairs = Pairs(row, vec4<u32>(start + j));
                var log_sum_exp = own_log_sum_exp;
                var delta = own_delta;
                if (ROWS_ARE_KEYS) {
                    pairs = Pairs(vec4<u32>(start + j), row);
                    log_sum_exp = vec4<f32>(log_sum_exps[j]);
                    delta = vec4<f32>(deltas[j]);
                }
                let pair = pair_gradients(
                    tile, pairs, product[j], grad_weight[j], log_sum_exp, delta, keep[j],
                    block,
                );
                let inside = vec4<bool>(start + j < range.y);
                var weight = pair.weight;
                if (MASKS_PAIRS) {
                    // of a true pair, a grad_output that is not finite shows here
                    let shows = !is_finite(grad_weight[j]) & (pair.weight > vec4<f32>());
                    weight = select(weight, grad_weight[j], shows);
                }
                product[j] = select(vec4<f32>(), pair.product, inside);
                grad_weight[j] = select(vec4<f32>(), weight, inside);
            }

            // pass 3: sums of the others' vectors
            // unroll
            for (var v = 0u; v < HEAD_VECTORS; v++) {
                let x = finite_vector(tile, other, 4u * v, false);
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    let all = hand_round(x[e]);
                    // unroll
                    for (var j = 0u; j < LANES; j++) {
                        sums[v][e] += product[j] * all[j];
                    }
                }
            }
            if (ROWS_ARE_KEYS) {
                // unroll
                for (var v = 0u; v < VALUE_VECTORS; v++) {
                    let x = finite_vector(tile, other, 4u * v, true);
                    // unroll
                    for (var e = 0u; e < 4u; e++) {
                        let all = hand_round(x[e]);
                        // unroll
                        for (var j = 0u; j < LANES; j++) {
                            second_sums[v][e] += grad_weight[j] * all[j];
                        }
                    }
                }
            }
            next = next_others(lane, tile, row_start, start + OTHER_TILE, range.y);
        }
    }

    // unroll
    for (var r = 0u; r < 4u; r++) {
        if (row[r] < rows) {
            let at = gradient_row(tile, row[r]);
            // unroll
            for (var v = 0u; v < HEAD_VECTORS; v++) {
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    if (4u * v + e < HEAD_DIM) {
                        gradient[at + 4u * v + e] = sums[v][e][r];
                    }
                }
            }
            if (ROWS_ARE_KEYS) {
                let second_at = second_gradient_row(tile, row[r]);
                // unroll
                for (var v = 0u; v < VALUE_VECTORS; v++) {
                    // unroll
                    for (var e = 0u; e < 4u; e++) {
                        if (4u * v + e < VALUE_DIM) {
                            second_gradient[second_at + 4u * v + e] = second_sums[v][e][r];
                        }
                    }
                }
            }
        }
    }
}
