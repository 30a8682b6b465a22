// recurrent_backward_sums_streamed: weight_hh^T d_gates with weight_hh read again in every step.
// Same names as recurrent_backward_sums_registers.wgsl.

fn load_weights(lane: Lane, direction: u32) {}

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
    for (var block = 0u; block < BLOCKS; block++) {
        // unroll
        for (var q = 0u; q < GATES_EACH; q++) {
            if (in_phase(q, phase)) {
                var w: array<array<vec4<f32>, 2>, COLUMNS>;
                // unroll
                for (var i = 0u; i < COLUMNS; i++) {
                    let column = min(column_of(lane, i), STATE - 1u);
                    w[i][0] = weight_hh(direction, 2u * block, gate_of(lane, q), column);
                    // the last block may be half a one: its gradients are zero, its weight must be
                    // finite
                    let second = min(2u * block + 1u, (HIDDEN - 1u) / 4u);
                    w[i][1] = weight_hh(direction, second, gate_of(lane, q), column);
                }
                // unroll
                for (var b = 0u; b < TOGETHER; b++) {
                    let d = gradient_block(lane, first + b, gate_of(lane, q), block);
                    // unroll
                    for (var i = 0u; i < COLUMNS; i++) {
                        // unroll
                        for (var j = 0u; j < 8u; j++) {
                            sums[b][q][i] = fma(w[i][j / 4u][j % 4u], d[j], sums[b][q][i]);
                        }
                    }
                }
            }
        }
    }
    return added(sums);
}
