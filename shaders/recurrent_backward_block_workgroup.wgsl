// recurrent_backward_block_workgroup: eight gradients of a gate for all invocations, from workgroup
// memory. Same names as recurrent_backward_block_subgroup.wgsl.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

fn gradient_block(lane: Lane, b: u32, gate: u32, block: u32) -> array<f32, 8> {
    let first = ((b * NUM_GATES + gate) * BLOCKS + block) * 8u;
    var d: array<f32, 8>;
    // unroll
    for (var j = 0u; j < 8u; j++) {
        d[j] = wg_gates[first + j];
    }
    return d;
}
