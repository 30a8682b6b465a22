// recurrent_hidden_subgroup: eight elements of h for all invocations; each of eight lanes loads one
// and the subgroup hands it round. Same names as recurrent_hidden_workgroup.wgsl.
// Holds       the subgroup size is a multiple of 8

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) subgroup_index: u32,
}

fn hidden_block(lane: Lane, b: u32, block: u32) -> array<f32, 8> {
    let own = wg_h[(b * BLOCKS + block) * 8u + lane.subgroup_index % 8u];
    var h: array<f32, 8>;
    // unroll
    for (var j = 0u; j < 8u; j++) {
        h[j] = subgroupBroadcast(own, j);
    }
    return h;
}
