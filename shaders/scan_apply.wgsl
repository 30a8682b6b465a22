// scan_apply: the steps of every chunk, from the state before it.
//     state = a state + b
//
// Layout      see scan_problem.wgsl
// Grid        one invocation per lane and chunk, folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; neighbours have neighbouring lanes
// Memory      none
// Holds       any lengths, none included
// Precision   f32; within a chunk the plain recurrence
// Parts       scan_problem.wgsl, scan_walk.wgsl, and one with the bindings: scan_tensors.wgsl,
//             scan_backward_tensors.wgsl, min_recurrent_gates.wgsl or
//             min_recurrent_backward_gates.wgsl with a cell's

fn advance(place: Place, step: Step, before: f32) -> f32 {
    let next = affine(step);
    let after = fma(next.a, before, next.b);
    emit(place, step, before, after);
    return after;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn scan_apply(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let id = (workgroup.x + workgroup.y * num_workgroups.x) * WORKGROUP_SIZE + index;
    let lane = id % params.padded_lanes;
    let chunk = id / params.padded_lanes;
    if (chunk >= params.num_chunks || lane >= params.lanes) {
        return;
    }
    let length = length_of(lane);
    let end = min((chunk + 1u) * params.chunk_len, params.num_steps);
    var state = 0.0;
    if (CARRIED) {
        state = scratch[carry_at(chunk, lane)];
    } else {
        state = initial(lane);
    }
    var step = chunk * params.chunk_len;
    for (; step + STEPS <= end; step += STEPS) {
        let steps = steps_from(step, lane, length);
        // unroll
        for (var i = 0u; i < STEPS; i++) {
            state = advance(place_of(step + i, lane, length), steps[i], state);
        }
    }
    for (; step < end; step++) {
        let place = place_of(step, lane, length);
        state = advance(place, step_at(place), state);
    }
    if (chunk + 1u == params.num_chunks) {
        if (has(TO_SCRATCH)) {
            scratch[state_at(lane)] = state;
        }
        if (has(WRITE_FINAL)) {
            finish(lane, state);
        }
    }
}
