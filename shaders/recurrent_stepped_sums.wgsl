// recurrent_stepped_sums: pass 1 of recurrent_stepped.wgsl in f32. Invocation (u, s) of UNITS *
// SPLIT sums every SPLIT-th vector of weight_hh from s on, for all gates of unit u and all rows.
//
// Memory      wg_h: the previous h of the rows, K_VECTORS at a time; wg_partial: shares of the sums

// of each unit: [BATCH, NUM_GATES]
const UNIT_SUMS: u32 = BATCH * NUM_GATES;

var<workgroup> wg_h: array<vec4<f32>, BATCH * K_VECTORS>;

fn sum_gates(lane: u32, sums: Sums) {
    let unit = min(sums.unit_start + lane % UNITS, sums.num_units - 1u);
    let split = lane / UNITS;
    var sum: array<array<f32, NUM_GATES>, BATCH>;
    // unroll
    for (var b = 0u; b < BATCH; b++) {
        // unroll
        for (var g = 0u; g < NUM_GATES; g++) {
            sum[b][g] = 0.0;
        }
    }
    let num_vectors = (sums.num_factors + 3u) / 4u;
    for (var start = 0u; start < num_vectors; start += K_VECTORS) {
        // wg_h is free
        workgroupBarrier();
        for (var i = lane; i < BATCH * K_VECTORS; i += WORKGROUP_SIZE) {
            let k = 4u * (start + i % K_VECTORS);
            wg_h[i] = factors_of(sums, sums.row_start + i / K_VECTORS, k);
        }
        // wg_h is visible
        workgroupBarrier();
        for (var k = split; k < min(K_VECTORS, num_vectors - start); k += SPLIT) {
            // unroll
            for (var g = 0u; g < NUM_GATES; g++) {
                if (is_summed(sums.second_phase, g)) {
                    let w = weights_of(sums.second_phase, sums.direction, start + k, g, unit);
                    // unroll
                    for (var b = 0u; b < BATCH; b++) {
                        sum[b][g] = add_dot(w, wg_h[b * K_VECTORS + k], sum[b][g]);
                    }
                }
            }
        }
    }
    // unroll
    for (var b = 0u; b < BATCH; b++) {
        // unroll
        for (var g = 0u; g < NUM_GATES; g++) {
            wg_partial[lane * UNIT_SUMS + b * NUM_GATES + g] = sum[b][g];
        }
    }
    add_shares(lane);
}

fn gate_sum(unit: u32, row: u32, g: u32) -> f32 {
    return wg_partial[unit * UNIT_SUMS + row * NUM_GATES + g];
}
