// recurrent_sums_registers: gates_h with weight_hh in registers, loaded once. Same names as
// recurrent_sums_streamed.wgsl.

// [ROWS, BLOCKS * 2] vectors; zero past the matrix
var<private> register_weights: array<array<vec4<f32>, BLOCK_VECTORS>, ROWS>;

fn load_weights(lane: Lane, direction: u32) {
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        let gate_row = gate_row_of(lane, r);
        // unroll
        for (var k = 0u; k < BLOCK_VECTORS; k++) {
            var w = vec4<f32>();
            if (gate_row < GATE_ROWS && 4u * k < STATE) {
                w = weight_hh(direction, k, gate_row);
            }
            register_weights[r][k] = w;
        }
    }
}

fn gate_sums(lane: Lane, direction: u32, phase: u32) -> array<array<f32, ROWS>, BATCH> {
    var sums: array<array<f32, ROWS>, BATCH>;
    // unroll
    for (var b = 0u; b < BATCH; b++) {
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            sums[b][r] = 0.0;
        }
    }
    // unroll
    for (var block = 0u; block < BLOCKS; block++) {
        // unroll
        for (var b = 0u; b < BATCH; b++) {
            let h = hidden_block(lane, b, block);
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
    return sums;
}
