// recurrent_persistent_sums: the first half of recurrent_persistent.wgsl: the factors that come
// from other workgroups, and the shares of the sums.

// whether a phase sums gate g; a projection takes the place of gate 0
fn is_summed(phase: u32, g: u32) -> bool {
    if (PROJECTED) {
        return phase == 0u || g == 0u;
    }
    return NUM_PHASES == 1u || (g >= FIRST_GATES) == (phase == 1u);
}

// four weights of gate g of a unit
fn weights_of(phase: u32, direction: u32, k4: u32, g: u32, unit: u32) -> vec4<f32> {
    if (PROJECTED && phase == 1u) {
        return weight_hr(direction, k4, unit);
    }
    return weight_hh(direction, k4, g * params.hidden_size + unit);
}

fn num_units(phase: u32) -> u32 {
    return select(params.hidden_size, params.state_size, PROJECTED && phase == 1u);
}

fn num_factors(phase: u32) -> u32 {
    return select(params.state_size, params.hidden_size, phase == 1u);
}

// wg_h, as far as it comes
fn stage(lane: u32, step: u32, phase: u32, place: Place) {
    for (var i = lane; i < BATCH * K_VECTORS; i += WORKGROUP_SIZE) {
        let row = place.row_start + i / K_VECTORS;
        let k = 4u * (i % K_VECTORS);
        var staged = vec4<f32>();
        if (row < params.batch) {
            staged = factors(step, phase, place, row, k, max(num_factors(phase), k) - k);
        }
        wg_h[i] = staged;
    }
}

// pass 1: a share of the sums, to wg_partial
fn share_of_sums(lane: u32, phase: u32, place: Place) {
    let unit = min(place.unit_start + lane % UNITS, num_units(phase) - 1u);
    let split = lane / UNITS;
    let num_vectors = (num_factors(phase) + 3u) / 4u;
    var sum: array<array<f32, NUM_GATES>, BATCH>;
    // unroll
    for (var b = 0u; b < BATCH; b++) {
        // unroll
        for (var g = 0u; g < NUM_GATES; g++) {
            sum[b][g] = 0.0;
        }
    }
    if (HELD && phase == 0u) {
        // unroll
        for (var v = 0u; v < VECTORS; v++) {
            // past the end both are zero
            let k = min(split + v * SPLIT, K_VECTORS - 1u);
            // unroll
            for (var g = 0u; g < NUM_GATES; g++) {
                // unroll
                for (var b = 0u; b < BATCH; b++) {
                    if (is_summed(phase, g) && split + v * SPLIT < num_vectors) {
                        sum[b][g] = add_dot(held[g][v], wg_h[b * K_VECTORS + k], sum[b][g]);
                    }
                }
            }
        }
    } else {
        for (var k = split; k < num_vectors; k += SPLIT) {
            // unroll
            for (var g = 0u; g < NUM_GATES; g++) {
                if (is_summed(phase, g)) {
                    let w = weights_of(phase, place.direction, k, g, unit);
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
}
