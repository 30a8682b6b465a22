// recurrent_backward_pack: what the backward pass reads of one direction of one layer's weights,
// from PyTorch's layout to the kernels'.
//
// Layout (G = NUM_GATES, H = hidden_size, S = state_size, I = input_size)
//     weight_ih [G H, I], weight_hh [G H, S]    read
//     bias_hh [G H]                             read; optional
//     peephole [3 H]                            read with PEEPHOLE; of i, f and o
//     weight_hr [S, H]                          read with PROJECTED
//     packed    from packed_first on, each part at a multiple of 64 elements:
//         weight_hh   [ceil(H / 4), G, S] vectors of four rows of a gate's block, zero past H
//         unit_weights  [NUM_UNIT_WEIGHTS, H]   as in recurrent_pack.wgsl
//         weight_hr   [ceil(S / 4), H] vectors of four rows, zero past S
//         weight_ih   [G H, I]
// Grid        one invocation per element of packed, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any sizes
// Precision   packed is f32, which halves are exact in
// Parts       common.wgsl, element_*.wgsl

struct Params {
    input_size: u32,
    hidden_size: u32,
    state_size: u32,
    num_elements: u32,
    unit_weights_first: u32,
    weight_hr_first: u32,
    weight_ih_first: u32,
    packed_first: u32,
    has_bias: u32,
}

@group(0) @binding(0) var<uniform>             params:    Params;
@group(0) @binding(1) var<storage, read>       weight_ih: array<Word>;
@group(0) @binding(2) var<storage, read>       weight_hh: array<Word>;
@group(0) @binding(3) var<storage, read>       bias_hh:   array<Word>;
@group(0) @binding(4) var<storage, read>       peephole:  array<Word>;
@group(0) @binding(5) var<storage, read>       weight_hr: array<Word>;
@group(0) @binding(6) var<storage, read_write> packed:    array<f32>;

const HAS_BIAS_N: bool = NUM_UNIT_WEIGHTS == 1u;

fn packed_element(i: u32) -> f32 {
    let hidden_size = params.hidden_size;
    if (i >= params.weight_ih_first) {
        let at = i - params.weight_ih_first;
        if (at >= NUM_GATES * hidden_size * params.input_size) {
            return 0.0;
        }
        return element(weight_ih[word_of(at)], at);
    }
    if (i >= params.weight_hr_first) {
        let at = i - params.weight_hr_first;
        let row = at / (4u * hidden_size) * 4u + at % 4u;
        if (!PROJECTED || row >= params.state_size) {
            return 0.0;
        }
        let index = row * hidden_size + at / 4u % hidden_size;
        return element(weight_hr[word_of(index)], index);
    }
    if (i >= params.unit_weights_first) {
        let at = i - params.unit_weights_first;
        if (PEEPHOLE && at < 3u * hidden_size) {
            return element(peephole[word_of(at)], at);
        }
        if (HAS_BIAS_N && params.has_bias != 0u && at < hidden_size) {
            let index = 2u * hidden_size + at;
            return element(bias_hh[word_of(index)], index);
        }
        return 0.0;
    }
    let vector = i / 4u;
    let k = vector / (NUM_GATES * params.state_size) * 4u + i % 4u;
    if (k >= hidden_size) {
        return 0.0;
    }
    let gate = vector / params.state_size % NUM_GATES;
    let index = (gate * hidden_size + k) * params.state_size + vector % params.state_size;
    return element(weight_hh[word_of(index)], index);
}

@compute @workgroup_size(64)
fn recurrent_backward_pack(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let i = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (i < params.num_elements) {
        packed[params.packed_first + i] = packed_element(i);
    }
}
