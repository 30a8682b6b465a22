// attention_cooperative_prefetch: keys and values of attention_cooperative_held.wgsl on their way
// to wg_stage: load_* into registers while products are computed, later store_*.

// what a subgroup may meet in a block of keys: a score far above its row's others, a value that is
// NaN or infinite
const GROWN: u32 = 1u;
const NONFINITE: u32 = 2u;

struct Keys {
    key: array<vec4<f16>, KEY_ITEMS>,
}

struct Values {
    value: array<vec4<f16>, VALUE_ITEMS>,
    flags: u32,
}

fn load_keys(lane: Lane, tile: Tile, key_start: u32) -> Keys {
    var result: Keys;
    // unroll
    for (var n = 0u; n < KEY_ITEMS; n++) {
        let x = key_item(tile, key_start, lane.index + n * WORKGROUP_SIZE);
        result.key[n] = vec4<f16>(x);
    }
    return result;
}

fn store_keys(lane: Lane, keys: Keys) {
    // unroll
    for (var n = 0u; n < KEY_ITEMS; n++) {
        let i = lane.index + n * WORKGROUP_SIZE;
        if (i < KEYS * HEAD_PAD / 4u) {
            stage(i, HEAD_PAD, keys.key[n]);
        }
    }
}

fn load_values(lane: Lane, tile: Tile, key_start: u32) -> Values {
    var result: Values;
    // unroll
    for (var n = 0u; n < VALUE_ITEMS; n++) {
        let x = value_item(tile, key_start, lane.index + n * WORKGROUP_SIZE);
        result.flags |= select(0u, NONFINITE, is_nonfinite(x));
        result.value[n] = vec4<f16>(finite_part(x));
    }
    return result;
}

fn store_values(lane: Lane, values: Values) {
    // unroll
    for (var n = 0u; n < VALUE_ITEMS; n++) {
        let i = lane.index + n * WORKGROUP_SIZE;
        if (i < KEYS * VALUE_PAD / 4u) {
            stage(i, VALUE_PAD, values.value[n]);
        }
    }
}
