// recurrent_hidden_workgroup: eight elements of h for all invocations, from workgroup memory. Same
// names as recurrent_hidden_subgroup.wgsl.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

fn hidden_block(lane: Lane, b: u32, block: u32) -> array<f32, 8> {
    var h: array<f32, 8>;
    // unroll
    for (var j = 0u; j < 8u; j++) {
        h[j] = wg_h[(b * BLOCKS + block) * 8u + j];
    }
    return h;
}
