// attention_broadcast_subgroup: KEYS keys and values at a time for all invocations; each lane loads
// one of them and the subgroup hands it round. Same names as attention_broadcast_workgroup.wgsl.
// Holds       KEYS is LANES

// this lane's key and value; of the last one past the end, so that a load stays inside
var<private> key_first: u32;
var<private> value_first: u32;

fn stage(lane: Lane, tile: Tile, key_start: u32) {
    let k = min(key_start + lane.subgroup_index, tile.key_end - 1u);
    key_first = key_row(tile, k);
    value_first = value_row(tile, k);
}

fn keys_at(lane: Lane, d: u32) -> array<f32, KEYS> {
    let i = key_first + d;
    return hand_round(element(key[word_of(i)], i));
}

fn values_at(lane: Lane, d: u32) -> array<f32, KEYS> {
    let i = value_first + d;
    return hand_round(element(value[word_of(i)], i));
}
