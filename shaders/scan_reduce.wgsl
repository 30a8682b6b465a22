// scan_reduce: all steps of a chunk as one, a state before to the state behind.
//     (a, b) then (a', b') = (a' a, a' b + b')
//
// Layout      see scan_problem.wgsl
// Grid        one invocation per lane and chunk but the last, folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; neighbours have neighbouring lanes
// Memory      none
// Holds       any lengths; at least two chunks
// Precision   f32; one order for each number of steps
// Parts       scan_problem.wgsl, scan_walk.wgsl, and one with the bindings: scan_tensors.wgsl,
//             scan_backward_tensors.wgsl, min_recurrent_gates.wgsl or
//             min_recurrent_backward_gates.wgsl with a cell's

@compute @workgroup_size(WORKGROUP_SIZE)
fn scan_reduce(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let id = (workgroup.x + workgroup.y * num_workgroups.x) * WORKGROUP_SIZE + index;
    let lane = id % params.padded_lanes;
    let chunk = id / params.padded_lanes;
    if (chunk + 1u >= params.num_chunks || lane >= params.lanes) {
        return;
    }
    let length = length_of(lane);
    let end = (chunk + 1u) * params.chunk_len;
    var total = Affine(1.0, 0.0);
    var step = chunk * params.chunk_len;
    for (; step + STEPS <= end; step += STEPS) {
        let steps = steps_from(step, lane, length);
        // unroll
        for (var i = 0u; i < STEPS; i++) {
            let next = affine(steps[i]);
            total = Affine(next.a * total.a, fma(next.a, total.b, next.b));
        }
    }
    for (; step < end; step++) {
        let next = affine(step_at(place_of(step, lane, length)));
        total = Affine(next.a * total.a, fma(next.a, total.b, next.b));
    }
    scratch[carry_at(chunk, lane)] = total.a;
    scratch[total_b_at(chunk, lane)] = total.b;
}
