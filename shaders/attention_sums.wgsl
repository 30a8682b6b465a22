// attention_sums: the weights of attention.wgsl in wg_stage, and what they add to the sums of the
// values: of VALUE_KEYS keys, whose values are staged behind them.

alias Sums = array<array<vec4<f32>, VALUE_VECTORS>, ROWS>;

const SHARE_KEYS: u32 = VALUE_KEYS / SHARES;

// where the weights of four keys lie: rows that are read together in different banks
fn weight_index(row: u32, key_vector: u32) -> u32 {
    return row * WEIGHT_VECTORS + (key_vector ^ (row & (WEIGHT_VECTORS - 1u)));
}

// of keys from `key` of those staged on, unless that is past them; the keys before them wrap round
fn store_weight(row: u32, key: u32, weight: vec4<f32>) {
    if (key < VALUE_KEYS) {
        wg_stage[weight_index(row, key / 4u)] = weight;
    }
}

fn add_values(lane: Lane, block: u32, acc: ptr<function, Sums>) {
    let x = lane.index % COLUMNS;
    let y = lane.index / THREADS_X;
    let first_key = lane.index % THREADS_X / COLUMNS * SHARE_KEYS;
    let first_value = VALUES_AT + first_key * VALUE_PITCH + x;
    if (MASKS_PAIRS && block != CLASS_INSIDE && atomicLoad(&wg_nonfinite) != 0u) {
        // 0 * NaN is NaN: skip the masked keys one by one
        for (var k = 0u; k < SHARE_KEYS; k++) {
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let at = weight_index(y + r * THREADS_Y, (first_key + k) / 4u);
                let weight = wg_stage[at][k % 4u];
                if (weight > 0.0) {
                    // unroll
                    for (var c = 0u; c < VALUE_VECTORS; c++) {
                        let value = wg_stage[first_value + k * VALUE_PITCH + c * COLUMNS];
                        (*acc)[r][c] += weight * value;
                    }
                }
            }
        }
        return;
    }
    for (var k = 0u; k < SHARE_KEYS; k += 4u) {
        var weight: array<vec4<f32>, ROWS>;
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            weight[r] = wg_stage[weight_index(y + r * THREADS_Y, (first_key + k) / 4u)];
        }
        // unroll
        for (var c = 0u; c < VALUE_VECTORS; c++) {
            let at = first_value + k * VALUE_PITCH + c * COLUMNS;
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
