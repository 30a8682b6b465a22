// recurrent_pack: one direction of one layer's weights, from PyTorch's layout to the kernels'.
//
// Layout (G = NUM_GATES, H = hidden_size, S = state_size, I = input_size)
//     weight_ih [G H, I], weight_hh [G H, S]    read
//     bias_ih [G H], bias_hh [G H]              read; optional
//     peephole [3 H]                            read with PEEPHOLE; of i, f and o
//     weight_hr [S, H]                          read if state_size is that of a projection
//     packed    from packed_first on, each part at a multiple of 64 elements:
//         weight_hh   [ceil(S / 4), G H] vectors of four k, zero past S
//         bias        [G H]         bias_ih + bias_hh; for a GRU's n only bias_ih
//         unit_weights  [NUM_UNIT_WEIGHTS, H]   of a GRU bias_hh of n, of an LSTM the peepholes
//         weight_hr   [ceil(H / 4), S] vectors of four k, zero past H
//         weight_ih   [I, G H]
// Grid        one invocation per element of packed, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any sizes
// Precision   packed is f32, which halves are exact in; the sum of the two biases is rounded once
// Parts       common.wgsl, element_*.wgsl

struct Params {
    input_size: u32,
    hidden_size: u32,
    state_size: u32,
    num_elements: u32,
    bias_first: u32,
    unit_weights_first: u32,
    weight_hr_first: u32,
    weight_ih_first: u32,
    packed_first: u32,
    has_bias: u32,
}

@group(0) @binding(0) var<uniform>             params:    Params;
@group(0) @binding(1) var<storage, read>       weight_ih: array<Word>;
@group(0) @binding(2) var<storage, read>       weight_hh: array<Word>;
@group(0) @binding(3) var<storage, read>       bias_ih:   array<Word>;
@group(0) @binding(4) var<storage, read>       bias_hh:   array<Word>;
@group(0) @binding(5) var<storage, read>       peephole:  array<Word>;
@group(0) @binding(6) var<storage, read>       weight_hr: array<Word>;
@group(0) @binding(7) var<storage, read_write> packed:    array<f32>;

const HAS_BIAS_N: bool = NUM_UNIT_WEIGHTS == 1u;

fn packed_element(i: u32) -> f32 {
    let gate_rows = NUM_GATES * params.hidden_size;
    if (i >= params.weight_ih_first) {
        let at = i - params.weight_ih_first;
        if (at / gate_rows >= params.input_size) {
            return 0.0;
        }
        let index = at % gate_rows * params.input_size + at / gate_rows;
        return element(weight_ih[word_of(index)], index);
    }
    if (i >= params.weight_hr_first) {
        let at = i - params.weight_hr_first;
        let k = at / (4u * params.state_size) * 4u + at % 4u;
        if (!PROJECTED || k >= params.hidden_size) {
            return 0.0;
        }
        let index = at / 4u % params.state_size * params.hidden_size + k;
        return element(weight_hr[word_of(index)], index);
    }
    if (i >= params.unit_weights_first) {
        let at = i - params.unit_weights_first;
        if (PEEPHOLE && at < 3u * params.hidden_size) {
            return element(peephole[word_of(at)], at);
        }
        if (HAS_BIAS_N && params.has_bias != 0u && at < params.hidden_size) {
            let index = 2u * params.hidden_size + at;
            return element(bias_hh[word_of(index)], index);
        }
        return 0.0;
    }
    if (i >= params.bias_first) {
        let gate_row = i - params.bias_first;
        if (params.has_bias == 0u || gate_row >= gate_rows) {
            return 0.0;
        }
        let of_input = element(bias_ih[word_of(gate_row)], gate_row);
        if (HAS_BIAS_N && gate_row >= 2u * params.hidden_size) {
            return of_input;
        }
        return of_input + element(bias_hh[word_of(gate_row)], gate_row);
    }
    let k = i / (4u * gate_rows) * 4u + i % 4u;
    if (k >= params.state_size) {
        return 0.0;
    }
    let index = i / 4u % gate_rows * params.state_size + k;
    return element(weight_hh[word_of(index)], index);
}

@compute @workgroup_size(64)
fn recurrent_pack(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let i = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (i < params.num_elements) {
        packed[params.packed_first + i] = packed_element(i);
    }
}
