// broadcast_subgroup: KEYS keys and values at a time for all invocations; each lane loads one of
// them and the subgroup hands it round. Same names as broadcast_workgroup.wgsl.
// Holds       the subgroup size is KEYS, a constant of the device

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) subgroup_index: u32,
}

// this lane's key and value; of the last one past the end, so that a load stays inside
var<private> key_first: u32;
var<private> value_first: u32;

fn stage(lane: Lane, tile: Tile, key_start: u32) {
    let k = min(key_start + lane.subgroup_index, tile.key_end - 1u);
    key_first = tile.key + k * params.key_token;
    value_first = tile.value + k * params.value_token;
}

fn hand_round(x: f32) -> array<f32, KEYS> {
    var all: array<f32, KEYS>;
    // unroll
    for (var j = 0u; j < KEYS; j++) {
        all[j] = subgroupBroadcast(x, j);
    }
    return all;
}

fn keys_at(lane: Lane, d: u32) -> array<f32, KEYS> {
    return hand_round(key[key_first + d]);
}

fn values_at(lane: Lane, d: u32) -> array<f32, KEYS> {
    return hand_round(value[value_first + d]);
}
