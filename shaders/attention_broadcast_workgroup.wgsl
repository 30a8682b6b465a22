// attention_broadcast_workgroup: KEYS keys and values at a time for all invocations, through
// workgroup memory. Same names as attention_broadcast_subgroup.wgsl.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

// [HEAD_DIM, KEYS] and [VALUE_DIM, KEYS]
var<workgroup> wg_key: array<f32, KEYS * HEAD_DIM>;
var<workgroup> wg_value: array<f32, KEYS * VALUE_DIM>;

// past the end the last key is repeated; its score is masked
fn stage(lane: Lane, tile: Tile, key_start: u32) {
    // wg_key and wg_value are free
    workgroupBarrier();
    for (var i = lane.index; i < KEYS * HEAD_DIM; i += WORKGROUP_SIZE) {
        let k = min(key_start + i / HEAD_DIM, tile.key_end - 1u);
        let at = key_row(tile, k) + i % HEAD_DIM;
        wg_key[i % HEAD_DIM * KEYS + i / HEAD_DIM] = element(key[word_of(at)], at);
    }
    for (var i = lane.index; i < KEYS * VALUE_DIM; i += WORKGROUP_SIZE) {
        let k = min(key_start + i / VALUE_DIM, tile.key_end - 1u);
        let at = value_row(tile, k) + i % VALUE_DIM;
        wg_value[i % VALUE_DIM * KEYS + i / VALUE_DIM] = element(value[word_of(at)], at);
    }
    // wg_key and wg_value are visible
    workgroupBarrier();
}

fn keys_at(lane: Lane, d: u32) -> array<f32, KEYS> {
    var all: array<f32, KEYS>;
    // unroll
    for (var j = 0u; j < KEYS; j++) {
        all[j] = wg_key[d * KEYS + j];
    }
    return all;
}

fn values_at(lane: Lane, d: u32) -> array<f32, KEYS> {
    var all: array<f32, KEYS>;
    // unroll
    for (var j = 0u; j < KEYS; j++) {
        all[j] = wg_value[d * KEYS + j];
    }
    return all;
}
