// recurrent_backward_mask: the input of some steps with zeros past the end of each sequence, so
// that nothing that lies there reaches a sum over the tokens.
//
// Layout      input, output [num_steps, batch, width], from time first_time on; lengths [batch]
// Grid        one invocation per element, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any sizes
// Precision   exact
// Parts       common.wgsl

struct Params {
    num_elements: u32,
    batch: u32,
    width: u32,
    first_time: u32,
    input_first: u32,
    output_first: u32,
}

@group(0) @binding(0) var<uniform>             params:  Params;
@group(0) @binding(1) var<storage, read>       input:   array<f32>;
@group(0) @binding(2) var<storage, read>       lengths: array<u32>;
@group(0) @binding(3) var<storage, read_write> output:  array<f32>;

@compute @workgroup_size(64)
fn recurrent_backward_mask(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let i = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (i >= params.num_elements) {
        return;
    }
    let token = i / params.width;
    let time = params.first_time + token / params.batch;
    var value = 0.0;
    if (time < lengths[token % params.batch]) {
        value = input[params.input_first + i];
    }
    output[params.output_first + i] = value;
}
