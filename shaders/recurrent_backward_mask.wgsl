// recurrent_backward_mask: the input of some steps with zeros past the end of each sequence, so
// that nothing that lies there reaches a sum over the tokens.
//
// Layout      input [seq_len, batch, width] or, by its strides, [batch, seq_len, width], from time
//             first_time on; output [num_steps, batch, width]; lengths [batch]
// Grid        one invocation per element, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any sizes
// Precision   output is f32, which halves are exact in
// Parts       common.wgsl, element_*.wgsl

struct Params {
    num_elements: u32,
    batch: u32,
    width: u32,
    first_time: u32,
    // of input, in vectors
    time_stride: u32,
    row_stride: u32,
    input_first: u32,
    output_first: u32,
}

@group(0) @binding(0) var<uniform>             params:  Params;
@group(0) @binding(1) var<storage, read>       input:   array<Word>;
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
    let place = token / params.batch;
    let row = token % params.batch;
    var value = 0.0;
    if (params.first_time + place < lengths[row]) {
        let vector = place * params.time_stride + row * params.row_stride;
        let at = params.input_first + vector * params.width + i % params.width;
        value = element(input[word_of(at)], at);
    }
    output[params.output_first + i] = value;
}
