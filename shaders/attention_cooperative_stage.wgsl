// attention_cooperative_stage: how queries, keys and values get into workgroup memory as factors of
// cooperative matrices, in f16: vector i of a tile whose rows have `pad` elements.
//
// Matrices are loaded from and stored to 16-byte boundaries. A driver lays out workgroup memory as
// it likes, so all of its arrays in these kernels are whole multiples of 16 bytes.

// the largest f16
const MOST: f32 = 65504.0;

fn stage(i: u32, pad: u32, x: vec4<f16>) {
    let at = i / (pad / 4u) * STAGE_PITCH + 4u * (i % (pad / 4u));
    // unroll
    for (var e = 0u; e < 4u; e++) {
        wg_stage[at + e] = x[e];
    }
}

fn query_item(tile: Tile, i: u32) -> vec4<f32> {
    let row = tile.start + i / (HEAD_PAD / 4u);
    if (row < tile.rows) {
        return query_vector(query_row(tile, row), 4u * (i % (HEAD_PAD / 4u)));
    }
    return vec4<f32>();
}

fn key_item(tile: Tile, key_start: u32, i: u32) -> vec4<f32> {
    let key = key_start + i / (HEAD_PAD / 4u);
    if (key < tile.key_end) {
        return key_vector(key_row(tile, key), 4u * (i % (HEAD_PAD / 4u)));
    }
    return vec4<f32>();
}

fn value_item(tile: Tile, key_start: u32, i: u32) -> vec4<f32> {
    let key = key_start + i / (VALUE_PAD / 4u);
    if (key < tile.key_end) {
        return value_vector(value_row(tile, key), 4u * (i % (VALUE_PAD / 4u)));
    }
    return vec4<f32>();
}

// 0 * NaN is NaN: what is not finite is left to nonfinite_sum
fn finite_part(x: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(), clamp(x, vec4<f32>(-MOST), vec4<f32>(MOST)), is_finite(x));
}

// of the weighted values of row `own` of the tile, elements d .. d + 3
fn nonfinite_sum(tile: Tile, key_start: u32, own: u32, d: u32) -> vec4<f32> {
    var result = vec4<f32>();
    for (var k = 0u; k < min(KEYS, tile.key_end - key_start); k++) {
        let weight = f32(wg_weights[own * WEIGHT_PITCH + k]);
        if (weight > 0.0) {
            let x = value_vector(value_row(tile, key_start + k), d);
            result += select(weight * x, vec4<f32>(), is_finite(x));
        }
    }
    return result;
}
