// recurrent_sums_registers: gates_h with weight_hh in registers, loaded once. Same names as
// recurrent_sums_streamed.wgsl.
// Needs in_order.wgsl.

// [ROWS, BLOCKS * 2] vectors
var<private> register_weights: array<array<vec4<f32>, BLOCK_VECTORS>, ROWS>;

fn load_weights(lane: Lane, direction: u32) {
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        let gate_row = min(gate_row_of(lane, r), GATE_ROWS - 1u);
        // unroll
        for (var k = 0u; k < BLOCK_VECTORS; k++) {
            // the last block may be half a one: its h is zero, its weight must be finite
            register_weights[r][k] = weight_hh(direction, min(k, (STATE - 1u) / 4u), gate_row);
        }
    }
}

fn gate_sums(
    lane: Lane,
    direction: u32,
    phase: u32,
    first: u32,
) -> array<array<f32, ROWS>, TOGETHER> {
    var sums: array<array<f32, ROWS>, TOGETHER>;
    // unroll
    for (var b = 0u; b < TOGETHER; b++) {
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            sums[b][r] = 0.0;
        }
    }
    // unroll
    for (var block = 0u; block < BLOCKS; block++) {
        for (var time = 0u; time < once(); time++) {
            // unroll
            for (var b = 0u; b < TOGETHER; b++) {
                let h = hidden_block(lane, first + b, block);
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    if ((FIRST_GATES == NUM_GATES) | ((r < FIRST_ROWS) == (phase == 0u))) {
                        // unroll
                        for (var j = 0u; j < 8u; j++) {
                            let w = register_weights[r][2u * block + j / 4u][j % 4u];
                            sums[b][r] = fma(w, h[j], sums[b][r]);
                        }
                    }
                }
            }
        }
    }
    return sums;
}
