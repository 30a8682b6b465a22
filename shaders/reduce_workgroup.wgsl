// reduce_workgroup: the maximum and the sum over the THREADS_X invocations that share a row of the
// workgroup, through workgroup memory. Same names as reduce_subgroup.wgsl. Both end with a barrier.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> wg_reduce: array<vec4<f32>, WORKGROUP_SIZE>;

fn max_over_row(lane: Lane, x: vec4<f32>) -> vec4<f32> {
    wg_reduce[lane.index] = x;
    // wg_reduce is visible
    workgroupBarrier();
    let first = lane.index / THREADS_X * THREADS_X;
    var result = wg_reduce[first];
    for (var i = 1u; i < THREADS_X; i++) {
        result = max(result, wg_reduce[first + i]);
    }
    // wg_reduce is free
    workgroupBarrier();
    return result;
}

fn sum_over_row(lane: Lane, x: vec4<f32>) -> vec4<f32> {
    wg_reduce[lane.index] = x;
    // wg_reduce is visible
    workgroupBarrier();
    let first = lane.index / THREADS_X * THREADS_X;
    var result = wg_reduce[first];
    for (var i = 1u; i < THREADS_X; i++) {
        result += wg_reduce[first + i];
    }
    // wg_reduce is free
    workgroupBarrier();
    return result;
}
