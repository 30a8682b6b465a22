// gradient_clip_norm: the norm of a part of the gradients, one partial result per workgroup.
//
// Layout      gradient [num_elements]; partials: pairs (see norm_pair.wgsl), this dispatch's from
//             partials_first on
// Grid        num_groups workgroups, folded to two dimensions
// Workgroup   64 invocations; each takes every (64 num_groups)-th element
// Memory      wg_pairs: the pair of each invocation
// Holds       any sizes
// Precision   f32; the shares are joined in order
// Parts       common.wgsl, norm_pair.wgsl

struct Params {
    num_elements: u32,
    num_groups: u32,
    gradient_first: u32,
    partials_first: u32,
}

@group(0) @binding(0) var<uniform>             params:   Params;
@group(0) @binding(1) var<storage, read>       gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

const WORKGROUP_SIZE: u32 = 64u;

var<workgroup> wg_pairs: array<vec2<f32>, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn gradient_clip_norm(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    var pair = vec2<f32>();
    let stride = params.num_groups * WORKGROUP_SIZE;
    for (var i = group * WORKGROUP_SIZE + lane; i < params.num_elements; i += stride) {
        pair = joined(pair, pair_of(gradient[params.gradient_first + i]));
    }
    wg_pairs[lane] = pair;
    // wg_pairs is visible
    workgroupBarrier();
    if (lane == 0u) {
        for (var share = 1u; share < WORKGROUP_SIZE; share++) {
            pair = joined(pair, wg_pairs[share]);
        }
        partials[params.partials_first + 2u * group] = pair[0];
        partials[params.partials_first + 2u * group + 1u] = pair[1];
    }
}
