// recurrent_backward_block_subgroup: eight gradients of a gate for all invocations; each of eight
// lanes loads one and the subgroup hands it round. Same names as
// recurrent_backward_block_workgroup.wgsl.
// Holds       the subgroup size is 8, and the eight are neighbours in the workgroup

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) subgroup_index: u32,
}

fn gradient_block(lane: Lane, b: u32, gate: u32, block: u32) -> array<f32, 8> {
    let first = ((b * NUM_GATES + gate) * BLOCKS + block) * 8u;
    let own = wg_gates[first + lane.subgroup_index % 8u];
    var d: array<f32, 8>;
    // unroll
    for (var j = 0u; j < 8u; j++) {
        d[j] = subgroupBroadcast(own, j);
    }
    return d;
}
