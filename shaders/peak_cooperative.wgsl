// peak_cooperative: nothing but multiply-adds of matrices that a subgroup holds together, for the
// roof of a device's matrix units.
//
//     sum = left right + sum, STEPS * rounds times, in ACCUMULATORS independent chains
// All elements of left are `factor`, those of right 1: with factor = 1 an element of a sum counts
// its EDGE products per step, exactly; chain a starts at a, so that no two are the same. Each step
// adds `change` to left, 0 that no compiler knows, or left right would be the same in all of them.
//
// Layout      output  [subgroups, ACCUMULATORS, EDGE, EDGE]
// Grid        x: any number of workgroups
// Workgroup   SUBGROUPS subgroups
// Memory      wg_left, wg_right: a factor each; wg_start: what the chains start at
// Holds       the subgroup size is SUBGROUP_SIZE; EDGE * STEPS * rounds + ACCUMULATORS < 2^24
// Precision   f16 factors, f32 sums
// Parts       cooperative_*.wgsl

struct Params {
    rounds: u32,
    factor: f32,
    change: f32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;

const WORKGROUP_SIZE: u32 = SUBGROUPS * SUBGROUP_SIZE;
const SIZE: u32 = EDGE * EDGE;

var<workgroup> wg_left: array<f16, SIZE>;
var<workgroup> wg_right: array<f16, SIZE>;
var<workgroup> wg_start: array<f32, ACCUMULATORS * SIZE>;

@diagnostic(off, derivative_uniformity)
@compute @workgroup_size(WORKGROUP_SIZE)
fn peak_cooperative(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
) {
    for (var i = lane; i < SIZE; i += WORKGROUP_SIZE) {
        wg_left[i] = f16(params.factor);
        wg_right[i] = f16(1.0);
    }
    for (var i = lane; i < ACCUMULATORS * SIZE; i += WORKGROUP_SIZE) {
        wg_start[i] = f32(i / SIZE);
    }
    // all of workgroup memory is visible
    workgroupBarrier();
    var left = coopLoadT<Left>(&wg_left[0], EDGE);
    let right = coopLoadT<Right>(&wg_right[0], EDGE);
    var sum: array<Sum, ACCUMULATORS>;
    // unroll
    for (var a = 0u; a < ACCUMULATORS; a++) {
        sum[a] = coopLoadT<Sum>(&wg_start[a * SIZE], EDGE);
    }
    // wg_left is free
    workgroupBarrier();
    for (var i = lane; i < SIZE; i += WORKGROUP_SIZE) {
        wg_left[i] = f16(params.change);
    }
    // wg_left is visible
    workgroupBarrier();
    let change = coopLoadT<Left>(&wg_left[0], EDGE);
    for (var round = 0u; round < params.rounds; round++) {
        // unroll
        for (var step = 0u; step < STEPS; step++) {
            // unroll
            for (var a = 0u; a < ACCUMULATORS; a++) {
                sum[a] = coopMultiplyAdd(left, right, sum[a]);
            }
            left += change;
        }
    }
    let first = (workgroup.x * SUBGROUPS + lane / SUBGROUP_SIZE) * ACCUMULATORS;
    // unroll
    for (var a = 0u; a < ACCUMULATORS; a++) {
        coopStoreT(sum[a], &output[(first + a) * SIZE], EDGE);
    }
}
