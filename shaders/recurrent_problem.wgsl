// recurrent_problem: the bindings, parameters and index arithmetic that the stepped and the
// resident kernel share.
//
// One layer of an RNN, LSTM or GRU over a sequence. The input projection gates_x = x weight_ih^T +
// bias has been computed for all steps by a GEMM; what is left per step is
//     gates_h = weight_hh h_(t-1);  (h_t, c_t) = cell(gates_x, gates_h, h_(t-1), c_(t-1))
// and with PROJECTED h_t = weight_hr h_t, state_size long, else hidden_size long as c_t.
// Step s computes time s in the forward and seq_len - 1 - s in the reverse direction. With lengths,
// times at or past a sequence's own length give output 0 and leave the state alone, so that the
// reverse direction starts at each sequence's own end.
//
// Layout (row-major, last axis contiguous; gates in the order of the cell's file)
//     scratch   states [num_directions, batch, hidden_size]: of an LSTM c, of a reset before the
//               product the sum of z; with two phases as large again, what the second one
//               multiplies: r h, or the h that is to be projected; then from gates_first on
//               gates_x [num_directions, steps of the chunk, batch], rows of row_len elements:
//               NUM_GATES times hidden_size; with SAVE see recurrent_save.wgsl
//     weights   see recurrent_pack.wgsl; one block of it per direction
//     h_0, h_n  [num_directions, batch, state_size]
//     c_0, c_n  [num_directions, batch, hidden_size]
//     lengths   [batch]
//     output    [seq_len, batch, num_directions, state_size] or, by its strides, [batch, seq_len,
//               num_directions, state_size], from time output_time on
// Source of the projection: Sak, Senior and Beaufays 2014; proj_size of PyTorch.

struct Params {
    hidden_size: u32,
    state_size: u32,
    batch: u32,
    seq_len: u32,
    // directions of the tensors; the first one of this dispatch, and whether that one runs in
    // reverse
    num_directions: u32,
    direction: u32,
    reverse: u32,
    // workgroups that have work; tiles of units and of batch rows
    num_groups: u32,
    unit_tiles: u32,
    batch_tiles: u32,
    // the steps of this dispatch, and of the chunk whose gates_x are there
    first_step: u32,
    num_steps: u32,
    chunk_start: u32,
    chunk_steps: u32,
    output_time: u32,
    clip: f32,
    flags: u32,
    gates_first: u32,
    weights_direction: u32,
    unit_weights_first: u32,
    weight_hr_first: u32,
    h_0_first: u32,
    c_0_first: u32,
    h_n_first: u32,
    c_n_first: u32,
    output_first: u32,
    activations: u32,
    row_len: u32,
    exchange_first: u32,
    spin_bound: u32,
    // of output, in tokens
    output_time_stride: u32,
    output_row_stride: u32,
}

const HAS_H_0: u32 = 1u;
const HAS_C_0: u32 = 2u;
const HAS_LENGTHS: u32 = 4u;
const WRITE_H_N: u32 = 8u;
const WRITE_C_N: u32 = 16u;

@group(0) @binding(0) var<uniform>             params:  Params;
@group(0) @binding(1) var<storage, read>       weights: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read>       h_0:     array<f32>;
@group(0) @binding(3) var<storage, read>       c_0:     array<f32>;
@group(0) @binding(4) var<storage, read>       lengths: array<u32>;
@group(0) @binding(6) var<storage, read_write> output:  array<f32>;
@group(0) @binding(7) var<storage, read_write> h_n:     array<f32>;
@group(0) @binding(8) var<storage, read_write> c_n:     array<f32>;

fn has(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

fn is_reverse(direction: u32) -> bool {
    return (direction + params.reverse) % 2u == 1u;
}

fn length_of(row: u32) -> u32 {
    if (has(HAS_LENGTHS)) {
        return min(lengths[row], params.seq_len);
    }
    return params.seq_len;
}

// What a step means for one row of the batch in one direction.
struct Moment {
    time: u32,
    // time is within the sequence, is its first one in this direction, its last one
    inside: bool,
    first: bool,
    last: bool,
}

fn moment_of(step: u32, row: u32, direction: u32) -> Moment {
    let length = length_of(row);
    if (is_reverse(direction)) {
        let time = params.seq_len - 1u - step;
        return Moment(time, time < length, time + 1u == length, time == 0u);
    }
    return Moment(step, step < length, step == 0u, step + 1u == length);
}

// element of [num_directions, batch, hidden_size]
fn cell_at(direction: u32, row: u32, unit: u32) -> u32 {
    return (direction * params.batch + row) * params.hidden_size + unit;
}

// element of [num_directions, batch, state_size]
fn state_at(direction: u32, row: u32, unit: u32) -> u32 {
    return (direction * params.batch + row) * params.state_size + unit;
}

// where the first phase of a step leaves to the second what that multiplies
fn factor_at(direction: u32, row: u32, unit: u32) -> u32 {
    return cell_at(params.num_directions + direction, row, unit);
}

fn output_at(time: u32, direction: u32, row: u32, unit: u32) -> u32 {
    let time_offset = (time - params.output_time) * params.output_time_stride;
    let token = time_offset + row * params.output_row_stride;
    let index = (token * params.num_directions + direction) * params.state_size + unit;
    return params.output_first + index;
}

fn initial_h(direction: u32, row: u32, unit: u32) -> f32 {
    if (has(HAS_H_0)) {
        return h_0[params.h_0_first + state_at(direction, row, unit)];
    }
    return 0.0;
}

fn initial_c(direction: u32, row: u32, unit: u32) -> f32 {
    if (has(HAS_C_0)) {
        return c_0[params.c_0_first + cell_at(direction, row, unit)];
    }
    return 0.0;
}

// h before the step, from where the step before has left it
fn previous_h(moment: Moment, direction: u32, row: u32, unit: u32) -> f32 {
    if (moment.first || !moment.inside) {
        return initial_h(direction, row, unit);
    }
    let time = select(moment.time - 1u, moment.time + 1u, is_reverse(direction));
    return output[output_at(time, direction, row, unit)];
}

fn previous_c(moment: Moment, direction: u32, row: u32, unit: u32) -> f32 {
    if (!HAS_CELL) {
        return 0.0;
    }
    if (moment.first || !moment.inside) {
        return initial_c(direction, row, unit);
    }
    return scratch_at(cell_at(direction, row, unit));
}

// the row of gates_x of a token
fn gates_at(moment: Moment, direction: u32, row: u32) -> u32 {
    // the chunk's gates lie in order of time, also those of the reverse direction
    let chunk_end = params.chunk_start + params.chunk_steps;
    let start = select(params.chunk_start, params.seq_len - chunk_end, is_reverse(direction));
    let step = (direction - params.direction) * params.chunk_steps + moment.time - start;
    return params.gates_first + (step * params.batch + row) * params.row_len;
}

// the gates of the input projection
fn gates_x(moment: Moment, direction: u32, row: u32, unit: u32) -> array<f32, NUM_GATES> {
    let first = gates_at(moment, direction, row) + unit;
    var gates: array<f32, NUM_GATES>;
    // unroll
    for (var g = 0u; g < NUM_GATES; g++) {
        gates[g] = scratch_at(first + g * params.hidden_size);
    }
    return gates;
}

// vector k4 (k = 4 k4 .. 4 k4 + 3) of a row of weight_hh
fn weight_hh(direction: u32, k4: u32, gate_row: u32) -> vec4<f32> {
    let block = (direction - params.direction) * params.weights_direction;
    return weights[block + k4 * NUM_GATES * params.hidden_size + gate_row];
}

// the same of weight_hr
fn weight_hr(direction: u32, k4: u32, unit: u32) -> vec4<f32> {
    let block = (direction - params.direction) * params.weights_direction;
    return weights[block + params.weight_hr_first + k4 * params.state_size + unit];
}

// the weights of a unit that belong to no product; see recurrent_pack.wgsl
fn unit_weights(direction: u32, unit: u32) -> vec3<f32> {
    let block = (direction - params.direction) * params.weights_direction;
    var own = vec3<f32>();
    // unroll
    for (var i = 0u; i < NUM_UNIT_WEIGHTS; i++) {
        let at = i * params.hidden_size + unit;
        own[i] = weights[block + params.unit_weights_first + at / 4u][at % 4u];
    }
    return own;
}

// whether the state after this step is the last one; a sequence of length 0 hands its initial
// state on, once
fn is_final(moment: Moment, row: u32) -> bool {
    let empty = length_of(row) == 0u && params.first_step == 0u;
    return (moment.last && moment.inside) || empty;
}

// carries a new cell state to where the next step and the caller look for it
fn store_c(moment: Moment, direction: u32, row: u32, unit: u32, c: f32) {
    if (moment.inside && HAS_CELL) {
        set_scratch(cell_at(direction, row, unit), c);
    }
    finish_c(moment, direction, row, unit, c);
}

fn finish_c(moment: Moment, direction: u32, row: u32, unit: u32, c: f32) {
    if (is_final(moment, row) && has(WRITE_C_N)) {
        c_n[params.c_n_first + cell_at(direction, row, unit)] = c;
    }
}

// the same for a hidden state
fn store_h(moment: Moment, direction: u32, row: u32, unit: u32, h: f32) {
    if (params.seq_len > 0u) {
        let at = output_at(moment.time, direction, row, unit);
        output[at] = select(0.0, h, moment.inside);
    }
    if (is_final(moment, row) && has(WRITE_H_N)) {
        h_n[params.h_n_first + state_at(direction, row, unit)] = h;
    }
}

// hidden and cell state of one unit
struct State {
    h: f32,
    c: f32,
}

// ONNX's clip bounds what goes into the activations
fn clipped(x: f32) -> f32 {
    return or_nan(clamp(x, -params.clip, params.clip), x);
}
