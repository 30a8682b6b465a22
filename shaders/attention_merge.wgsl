// attention_merge: the result of attention over all keys from results over parts of them.
//     log_sum_exp = ln sum_p exp(log_sum_exp_p)
//     output = sum_p exp(log_sum_exp_p - log_sum_exp) output_p
// in the order of the parts. A part without keys (log_sum_exp -infinity) counts nothing.
// Source: Dao et al. 2023 (Flash-Decoding); Milakov & Gimelshein 2018.
//
// Layout      parts [NUM_PARTS, rows, dim] and parts_log_sum_exp [NUM_PARTS, rows], or with
//             TWO_TENSORS the first part there and the other in second and second_log_sum_exp;
//             output by its strides; log_sum_exp [rows]
// Grid        one invocation per element of output, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       rows = batch * num_heads * q_len
// Precision   f32
// Parts       common.wgsl

struct Params {
    num_rows: u32,
    num_elements: u32,
    num_heads: u32,
    q_len: u32,
    parts_first: u32,
    parts_log_sum_exp_first: u32,
    output_first: u32,
    output_batch: u32,
    output_head: u32,
    output_token: u32,
    log_sum_exp_first: u32,
    write_log_sum_exp: u32,
}

@group(0) @binding(0) var<uniform>             params:             Params;
@group(0) @binding(1) var<storage, read>       parts:              array<f32>;
@group(0) @binding(2) var<storage, read>       parts_log_sum_exp:  array<u32>;
@group(0) @binding(3) var<storage, read>       second:             array<f32>;
@group(0) @binding(4) var<storage, read>       second_log_sum_exp: array<u32>;
@group(0) @binding(5) var<storage, read_write> output:             array<f32>;
@group(0) @binding(6) var<storage, read_write> log_sum_exp:        array<u32>;

fn part_bits(part: u32, row: u32) -> u32 {
    if (TWO_TENSORS) {
        if (part == 1u) {
            return second_log_sum_exp[row];
        }
    }
    return parts_log_sum_exp[params.parts_log_sum_exp_first + part * params.num_rows + row];
}

fn part_output(part: u32, index: u32) -> f32 {
    if (TWO_TENSORS) {
        if (part == 1u) {
            return second[index];
        }
    }
    return parts[params.parts_first + part * params.num_elements + index];
}

@compute @workgroup_size(64)
fn attention_merge(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let index = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (index >= params.num_elements) {
        return;
    }
    let row = index / DIM;
    let d = index % DIM;
    var maximum = MASKED;
    for (var part = 0u; part < NUM_PARTS; part++) {
        let bits = part_bits(part, row);
        if (bits != NEGATIVE_INFINITY_BITS) {
            maximum = max(maximum, bitcast<f32>(bits));
        }
    }
    var sum = 0.0;
    var value = 0.0;
    for (var part = 0u; part < NUM_PARTS; part++) {
        let bits = part_bits(part, row);
        if (bits != NEGATIVE_INFINITY_BITS) {
            let weight = exp(bitcast<f32>(bits) - maximum);
            sum += weight;
            value += weight * part_output(part, index);
        }
    }
    let head = row / params.q_len;
    let at = params.output_first + head / params.num_heads * params.output_batch
        + head % params.num_heads * params.output_head + row % params.q_len * params.output_token;
    output[at + d] = select(0.0, value / sum, sum > 0.0);
    if (d == 0u && params.write_log_sum_exp != 0u) {
        let bits = select(NEGATIVE_INFINITY_BITS, bitcast<u32>(maximum + log(sum)), sum > 0.0);
        log_sum_exp[params.log_sum_exp_first + row] = bits;
    }
}
