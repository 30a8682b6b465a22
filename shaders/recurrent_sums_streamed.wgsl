// recurrent_sums_streamed: gates_h with weight_hh read again in every step. Same names as
// recurrent_sums_registers.wgsl.

fn load_weights(lane: Lane, direction: u32) {}

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
    for (var block = 0u; block < BLOCKS; block++) {
        var w: array<array<vec4<f32>, 2>, ROWS>;
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            if ((FIRST_GATES == NUM_GATES) | ((r < FIRST_ROWS) == (phase == 0u))) {
                let gate_row = min(gate_row_of(lane, r), GATE_ROWS - 1u);
                w[r][0] = weight_hh(direction, 2u * block, gate_row);
                // the last block may be half a one: its h is zero, its weight must be finite
                let second = min(2u * block + 1u, (STATE - 1u) / 4u);
                w[r][1] = weight_hh(direction, second, gate_row);
            }
        }
        // unroll
        for (var b = 0u; b < TOGETHER; b++) {
            let h = hidden_block(lane, first + b, block);
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                if ((FIRST_GATES == NUM_GATES) | ((r < FIRST_ROWS) == (phase == 0u))) {
                    // unroll
                    for (var j = 0u; j < 8u; j++) {
                        sums[b][r] = fma(w[r][j / 4u][j % 4u], h[j], sums[b][r]);
                    }
                }
            }
        }
    }
    return sums;
}
