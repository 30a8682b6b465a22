// recurrent_backward_sums_registers: weight_hh^T d_gates with weight_hh in registers, loaded once.
// Same names as recurrent_backward_sums_streamed.wgsl. Needs in_order.wgsl.

// [GATES_EACH, COLUMNS, BLOCKS * 2] vectors
var<private> register_weights: array<array<array<vec4<f32>, BLOCK_VECTORS>, COLUMNS>, GATES_EACH>;

fn load_weights(lane: Lane, direction: u32) {
    // unroll
    for (var q = 0u; q < GATES_EACH; q++) {
        // unroll
        for (var i = 0u; i < COLUMNS; i++) {
            let column = min(column_of(lane, i), STATE - 1u);
            // unroll
            for (var k = 0u; k < BLOCK_VECTORS; k++) {
                // the last block may be half a one: its gradients are zero, its weight must be
                // finite
                let own = min(k, (HIDDEN - 1u) / 4u);
                register_weights[q][i][k] = weight_hh(direction, own, gate_of(lane, q), column);
            }
        }
    }
}

fn column_sums(
    lane: Lane,
    direction: u32,
    phase: u32,
    first: u32,
) -> array<array<f32, COLUMNS>, TOGETHER> {
    // of each gate by itself: chains of sums that do not wait for each other
    var sums: array<array<array<f32, COLUMNS>, GATES_EACH>, TOGETHER>;
    // unroll
    for (var b = 0u; b < TOGETHER; b++) {
        // unroll
        for (var q = 0u; q < GATES_EACH; q++) {
            // unroll
            for (var i = 0u; i < COLUMNS; i++) {
                sums[b][q][i] = 0.0;
            }
        }
    }
    // unroll
    for (var block = 0u; block < BLOCKS; block++) {
        for (var time = 0u; time < once(); time++) {
            // unroll
            for (var q = 0u; q < GATES_EACH; q++) {
                if (in_phase(q, phase)) {
                    // unroll
                    for (var b = 0u; b < TOGETHER; b++) {
                        let d = gradient_block(lane, first + b, gate_of(lane, q), block);
                        // unroll
                        for (var i = 0u; i < COLUMNS; i++) {
                            // unroll
                            for (var j = 0u; j < 8u; j++) {
                                let w = register_weights[q][i][2u * block + j / 4u][j % 4u];
                                sums[b][q][i] = fma(w, d[j], sums[b][q][i]);
                            }
                        }
                    }
                }
            }
        }
    }
    return added(sums);
}
