// attention_sums: what the values that attention.wgsl has staged add to the sums of its rows.

alias Sums = array<array<vec4<f32>, VALUE_VECTORS>, ROWS>;

// rows that are read together lie in different banks
fn weight_index(row: u32, key_vector: u32) -> u32 {
    return row * THREADS_X + (key_vector ^ (row & (THREADS_X - 1u)));
}

// adds the values of VALUE_KEYS keys, weighted, of which the first is first_key of wg_weights
fn add_values(lane: Lane, first_key: u32, block: u32, acc: ptr<function, Sums>) {
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;
    if (MASKS_PAIRS && block != CLASS_INSIDE && atomicLoad(&wg_nonfinite) != 0u) {
        // 0 * NaN is NaN: skip the masked keys one by one
        for (var k = 0u; k < VALUE_KEYS; k++) {
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let at = weight_index(y + r * THREADS_Y, (first_key + k) / 4u);
                let weight = wg_weights[at][k % 4u];
                if (weight > 0.0) {
                    // unroll
                    for (var c = 0u; c < VALUE_VECTORS; c++) {
                        (*acc)[r][c] += weight * wg_stage[k * VALUE_PITCH + x + c * THREADS_X];
                    }
                }
            }
        }
        return;
    }
    for (var k = 0u; k < VALUE_KEYS; k += 4u) {
        var weight: array<vec4<f32>, ROWS>;
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            let row = y + r * THREADS_Y;
            weight[r] = wg_weights[weight_index(row, (first_key + k) / 4u)];
        }
        // unroll
        for (var c = 0u; c < VALUE_VECTORS; c++) {
            let at = k * VALUE_PITCH + x + c * THREADS_X;
            let v0 = wg_stage[at];
            let v1 = wg_stage[at + VALUE_PITCH];
            let v2 = wg_stage[at + 2u * VALUE_PITCH];
            let v3 = wg_stage[at + 3u * VALUE_PITCH];
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                (*acc)[r][c] += weight[r].x * v0;
                (*acc)[r][c] += weight[r].y * v1;
                (*acc)[r][c] += weight[r].z * v2;
                (*acc)[r][c] += weight[r].w * v3;
            }
        }
    }
}
