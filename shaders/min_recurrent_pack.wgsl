// min_recurrent_pack: one layer's weights, from PyTorch's layout to the kernels'.
//
// Layout (R = gate_rows, I = input_size)
//     weight [R, I], bias [R]    read; the bias is optional
//     packed    from packed_first on, each part at a multiple of 64 elements:
//         weight transposed   [I, R]   for the forward pass
//         bias                [R]      zeros if absent
//         weight              [R, I]   for the gradient of the input
// Grid        one invocation per element of packed, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any sizes
// Precision   bit for bit
// Parts       none

struct Params {
    input_size: u32,
    gate_rows: u32,
    num_elements: u32,
    bias_first: u32,
    weight_first: u32,
    packed_first: u32,
    has_bias: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       weight: array<f32>;
@group(0) @binding(2) var<storage, read>       bias:   array<f32>;
@group(0) @binding(3) var<storage, read_write> packed: array<f32>;

fn packed_element(i: u32) -> f32 {
    let num_weights = params.gate_rows * params.input_size;
    if (i >= params.weight_first) {
        let at = i - params.weight_first;
        if (at < num_weights) {
            return weight[at];
        }
        return 0.0;
    }
    if (i >= params.bias_first) {
        let at = i - params.bias_first;
        if (params.has_bias != 0u && at < params.gate_rows) {
            return bias[at];
        }
        return 0.0;
    }
    if (i < num_weights) {
        return weight[i % params.gate_rows * params.input_size + i / params.gate_rows];
    }
    return 0.0;
}

@compute @workgroup_size(64)
fn min_recurrent_pack(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let i = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + index;
    if (i < params.num_elements) {
        packed[params.packed_first + i] = packed_element(i);
    }
}
