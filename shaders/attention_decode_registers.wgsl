// attention_decode_registers: what attention_decode.wgsl has in registers: keys and values, which
// are on their way while it computes, and the sums of the values.

const_assert KEYS_EACH * THREADS_Y == KEY_TILE;
const_assert 4u * VALUE_VECTORS * VALUE_ROWS == KEY_TILE;

struct Keys {
    key: array<array<Loaded, HEAD_VECTORS>, KEYS_EACH>,
}

struct Values {
    value: array<array<Loaded, 4>, VALUE_VECTORS>,
}

fn load_keys(lane: Lane, tile: Tile, key_start: u32) -> Keys {
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;
    var result: Keys;
    // unroll
    for (var n = 0u; n < KEYS_EACH; n++) {
        // past the end the last key stands in; what comes of it is masked
        let at = key_row(tile, min(key_start + y + n * THREADS_Y, tile.key_end - 1u));
        // unroll
        for (var c = 0u; c < HEAD_VECTORS; c++) {
            result.key[n][c] = load_key(at, 4u * (x + c * THREADS_X));
        }
    }
    return result;
}

// the first of four keys of a tile whose values an invocation sums
fn value_slot(lane: Lane, n: u32) -> u32 {
    return 4u * (lane.index / VALUE_LANES + n * VALUE_ROWS);
}

fn load_values(lane: Lane, tile: Tile, key_start: u32) -> Values {
    var result: Values;
    // unroll
    for (var n = 0u; n < VALUE_VECTORS; n++) {
        let first = key_start + value_slot(lane, n);
        // unroll
        for (var j = 0u; j < 4u; j++) {
            let at = value_row(tile, min(first + j, tile.key_end - 1u));
            result.value[n][j] = load_value(at, 4u * (lane.index % VALUE_LANES));
        }
    }
    return result;
}

// adds weighted values to the sums of all rows
fn accumulate(lane: Lane, values: Values, sums: ptr<function, array<vec4<f32>, ROWS>>) {
    // unroll
    for (var n = 0u; n < VALUE_VECTORS; n++) {
        let at = value_slot(lane, n) / 4u;
        let v0 = loaded(values.value[n][0]);
        let v1 = loaded(values.value[n][1]);
        let v2 = loaded(values.value[n][2]);
        let v3 = loaded(values.value[n][3]);
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            let weight = wg_weights[r * KEY_VECTORS + at];
            (*sums)[r] += weight.x * v0;
            (*sums)[r] += weight.y * v1;
            (*sums)[r] += weight.z * v2;
            (*sums)[r] += weight.w * v3;
        }
    }
}

// the same where some pairs are masked: 0 * NaN is NaN
fn accumulate_unmasked(
    lane: Lane,
    values: Values,
    sums: ptr<function, array<vec4<f32>, ROWS>>,
) {
    // unroll
    for (var n = 0u; n < VALUE_VECTORS; n++) {
        let at = value_slot(lane, n) / 4u;
        // unroll
        for (var j = 0u; j < 4u; j++) {
            let v = loaded(values.value[n][j]);
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let weight = wg_weights[r * KEY_VECTORS + at][j];
                (*sums)[r] += select(vec4<f32>(), weight * v, weight > 0.0);
            }
        }
    }
}
