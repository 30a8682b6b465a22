// attention_hand_round: what each lane of a subgroup has, for all its lanes.
// Holds       the subgroup size is LANES, a constant of the device

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) subgroup_index: u32,
}

fn hand_round(x: f32) -> array<f32, LANES> {
    var all: array<f32, LANES>;
    // unroll
    for (var j = 0u; j < LANES; j++) {
        all[j] = subgroupBroadcast(x, j);
    }
    return all;
}
