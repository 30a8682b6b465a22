// scan_carry: the state before each chunk, from the totals of the chunks before.
//
// Layout      see scan_problem.wgsl
//     start     [lanes]   the state before the first step, with HAS_INITIAL
//     h_0       [lanes]   copied to scratch with KEEP_H_0: the backward kernel has no binding left
// Grid        one invocation per lane, folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations
// Memory      none
// Holds       the totals of all chunks but the last are there
// Precision   f32
// Parts       scan_problem.wgsl

@group(0) @binding(0) var<uniform>             params:  Params;
@group(0) @binding(1) var<storage, read>       start:   array<f32>;
@group(0) @binding(2) var<storage, read>       h_0:     array<f32>;
@group(0) @binding(3) var<storage, read>       lengths: array<u32>;
@group(0) @binding(4) var<storage, read_write> scratch: array<f32>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn scan_carry(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let lane = (workgroup.x + workgroup.y * num_workgroups.x) * WORKGROUP_SIZE + index;
    if (lane >= params.lanes) {
        return;
    }
    if (has(KEEP_H_0)) {
        scratch[kept_h_0_at(lane)] = h_0[params.h_0_first + lane];
    }
    var state = 0.0;
    if (has(FROM_SCRATCH)) {
        state = scratch[state_at(lane)];
    } else if (has(HAS_INITIAL)) {
        state = start[params.start_first + lane];
    }
    var chunk = 0u;
    for (; chunk + STEPS < params.num_chunks; chunk += STEPS) {
        var totals: array<Affine, STEPS>;
        // unroll
        for (var i = 0u; i < STEPS; i++) {
            let a = scratch[carry_at(chunk + i, lane)];
            totals[i] = Affine(a, scratch[total_b_at(chunk + i, lane)]);
        }
        // unroll
        for (var i = 0u; i < STEPS; i++) {
            scratch[carry_at(chunk + i, lane)] = state;
            state = fma(totals[i].a, state, totals[i].b);
        }
    }
    for (; chunk < params.num_chunks; chunk++) {
        let a = scratch[carry_at(chunk, lane)];
        scratch[carry_at(chunk, lane)] = state;
        // nobody has added up the last chunk
        if (chunk + 1u < params.num_chunks) {
            state = fma(a, state, scratch[total_b_at(chunk, lane)]);
        }
    }
}
