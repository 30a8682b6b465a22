// attention_merge: the result of attention over all keys from results over parts of them.
//     log_sum_exp = ln sum_p exp(log_sum_exp_p)
//     output = sum_p exp(log_sum_exp_p - log_sum_exp) output_p
// A part without keys (log_sum_exp -infinity) counts nothing. Of the SHARES invocations that share
// an element each takes every SHARES-th part, four at once; their sums are added in their order.
// Source: Dao et al. 2023 (Flash-Decoding); Milakov & Gimelshein 2018.
//
// Layout      parts [NUM_PARTS, rows, dim] and parts_log_sum_exp [NUM_PARTS, rows], or with
//             TWO_TENSORS the first part there and the other in second and second_log_sum_exp;
//             output by its strides; log_sum_exp [rows]
// Grid        one workgroup per ELEMENTS elements of output, folded to two dimensions
// Workgroup   SHARES * ELEMENTS invocations
// Memory      wg_totals: the sums of all invocations
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

// Some parts of an element: maximum of log_sum_exp_p, and relative to it the sums of the weights
// and of the weighted outputs.
struct Total {
    maximum: f32,
    sum: f32,
    value: f32,
}

fn rescaled(total: Total, maximum: f32) -> Total {
    let factor = exp(total.maximum - maximum);
    return Total(maximum, factor * total.sum, factor * total.value);
}

const WORKGROUP_SIZE: u32 = SHARES * ELEMENTS;

// [SHARES, ELEMENTS]
var<workgroup> wg_totals: array<vec4<f32>, WORKGROUP_SIZE>;

// of every SHARES-th part from first on
fn total_of(first: u32, row: u32, index: u32) -> Total {
    var total = Total(MASKED, 0.0, 0.0);
    for (var start = first; start < NUM_PARTS; start += 4u * SHARES) {
        var log_sum: vec4<f32>;
        var part_value: vec4<f32>;
        var counts: vec4<bool>;
        // unroll
        for (var j = 0u; j < 4u; j++) {
            let part = start + j * SHARES;
            let bits = part_bits(min(part, NUM_PARTS - 1u), row);
            part_value[j] = part_output(min(part, NUM_PARTS - 1u), index);
            counts[j] = part < NUM_PARTS && bits != NEGATIVE_INFINITY_BITS;
            log_sum[j] = bitcast<f32>(select(MASKED_BITS, bits, counts[j]));
        }
        let pairs = max(log_sum.xy, log_sum.zw);
        total = rescaled(total, max(total.maximum, max(pairs.x, pairs.y)));
        // unroll
        for (var j = 0u; j < 4u; j++) {
            if (counts[j]) {
                let weight = exp(log_sum[j] - total.maximum);
                total.sum += weight;
                total.value += weight * part_value[j];
            }
        }
    }
    return total;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_merge(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let own = lane % ELEMENTS;
    let index = (workgroup.x + workgroup.y * num_workgroups.x) * ELEMENTS + own;
    let row = index / DIM;
    let d = index % DIM;
    var total = Total(MASKED, 0.0, 0.0);
    if (index < params.num_elements) {
        total = total_of(lane / ELEMENTS, row, index);
    }
    wg_totals[lane] = vec4<f32>(total.maximum, total.sum, total.value, 0.0);
    // wg_totals is visible
    workgroupBarrier();
    if (lane >= ELEMENTS || index >= params.num_elements) {
        return;
    }
    for (var share = 1u; share < SHARES; share++) {
        let other = wg_totals[share * ELEMENTS + own];
        let maximum = max(total.maximum, other.x);
        total = rescaled(total, maximum);
        let more = rescaled(Total(other.x, other.y, other.z), maximum);
        total.sum += more.sum;
        total.value += more.value;
    }
    let head = row / params.q_len;
    let at = params.output_first + head / params.num_heads * params.output_batch
        + head % params.num_heads * params.output_head + row % params.q_len * params.output_token;
    let empty = total.sum == 0.0;
    output[at + d] = select(total.value / total.sum, 0.0, empty);
    if (d == 0u && params.write_log_sum_exp != 0u) {
        let log_sum = total.maximum + log(total.sum);
        let bits = select(bitcast<u32>(log_sum), NEGATIVE_INFINITY_BITS, empty);
        log_sum_exp[params.log_sum_exp_first + row] = bits;
    }
}
