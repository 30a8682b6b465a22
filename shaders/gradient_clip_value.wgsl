// gradient_clip_value: gradient = min(max(gradient, -max_value), max_value); a NaN stays one.
// Source: Mikolov 2012, Statistical language models based on neural networks, chapter 3.
//
// Layout      gradient [num_elements]
// Grid        one invocation per element, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any size
// Precision   exact
// Parts       common.wgsl

struct Params {
    num_elements: u32,
    max_value: f32,
    gradient_first: u32,
}

@group(0) @binding(0) var<uniform>             params:   Params;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;

@compute @workgroup_size(64)
fn gradient_clip_value(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let i = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (i < params.num_elements) {
        let at = params.gradient_first + i;
        let x = gradient[at];
        let high = select(x, params.max_value, x > params.max_value);
        gradient[at] = select(high, -params.max_value, x < -params.max_value);
    }
}
