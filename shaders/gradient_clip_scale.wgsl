// gradient_clip_scale: gradient *= factor, which gradient_clip_total.wgsl has left.
//
// Layout      norm: the norm, then the factor; gradient [num_elements]
// Grid        one invocation per element, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any size
// Precision   f32; one product, rounded once
// Parts       common.wgsl

struct Params {
    num_elements: u32,
    norm_first: u32,
    gradient_first: u32,
}

@group(0) @binding(0) var<uniform>             params:   Params;
@group(0) @binding(1) var<storage, read>       norm:     array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

@compute @workgroup_size(64)
fn gradient_clip_scale(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let i = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (i < params.num_elements) {
        gradient[params.gradient_first + i] *= norm[params.norm_first + 1u];
    }
}
