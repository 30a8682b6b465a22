// reduce_subgroup: the maximum and the sum over the THREADS_X invocations that share a row of the
// workgroup, by shuffles. Same names as reduce_workgroup.wgsl.
// Holds       THREADS_X is a power of two, at most the smallest subgroup size of the device

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

fn max_over_row(lane: Lane, x: vec4<f32>) -> vec4<f32> {
    var result = x;
    for (var distance = 1u; distance < THREADS_X; distance *= 2u) {
        result = max(result, subgroupShuffleXor(result, distance));
    }
    return result;
}

fn sum_over_row(lane: Lane, x: vec4<f32>) -> vec4<f32> {
    var result = x;
    for (var distance = 1u; distance < THREADS_X; distance *= 2u) {
        result += subgroupShuffleXor(result, distance);
    }
    return result;
}
