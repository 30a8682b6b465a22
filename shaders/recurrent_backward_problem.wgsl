// recurrent_backward_problem: the bindings, parameters and index arithmetic that the two kernels of
// the reverse sweep share.
//
// From the last step to the first, with dh and dc the gradients of a step's h and c:
//     dh += grad_output_t;  (d_gates, dh_direct, dc) = cell_backward(saved, dh, dc)
//     dh = dh_direct + weight_hh^T d_gates
// where an LSTM with a projection gives the cell weight_hr^T dh.
// What is left is outside of the loop: the gradients of the weights, the biases and the input are
// products and sums of the d_gates of many steps. Times at or past a sequence's own length hand dh
// and dc on as they are and have d_gates of 0.
// Source: Werbos 1990, Backpropagation through time.
//
// Layout (row-major, last axis contiguous; gates in the order of the cell's file)
//     weights      see recurrent_backward_pack.wgsl; one block of it per direction
//     reserve      see recurrent_problem.wgsl; from saved_first on rows [num_directions, steps of
//     the
//                  chunk, batch] of saved_len elements, of which SLOTS times hidden_size are read
//     lengths      [batch]
//     grad_output  [seq_len, batch, num_directions, state_size] or, by its strides, [batch,
//                  seq_len, num_directions, state_size], from time grad_output_time on
//     scratch      dh [num_directions, batch, state_size] and from carry_c_first on dc
//                  [num_directions, batch, hidden_size]; then from grads_first on rows
//                  [num_directions, steps of the piece, batch] of row_len elements: GRADS times
//                  hidden_size, then with KEEP_C the new c, with PROJECTED h before its projection,
//                  with KEEP_H dh [state_size]

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
    // the first place of this dispatch, counted from the end of the piece, and the number of them
    first_place: u32,
    num_places: u32,
    // the steps whose saved rows are bound, and those among them whose d_gates are
    chunk_start: u32,
    chunk_steps: u32,
    piece_start: u32,
    piece_steps: u32,
    grad_output_time: u32,
    clip: f32,
    truncate: u32,
    flags: u32,
    activations: u32,
    weights_direction: u32,
    unit_weights_first: u32,
    weight_hr_first: u32,
    saved_first: u32,
    saved_len: u32,
    carry_c_first: u32,
    grads_first: u32,
    row_len: u32,
    grad_output_first: u32,
    // of grad_output, in tokens
    grad_output_time_stride: u32,
    grad_output_row_stride: u32,
}

const HAS_LENGTHS: u32 = 1u;
const HAS_GRAD_OUTPUT: u32 = 2u;
// dh and dc are in scratch, from a step behind; otherwise they are 0
const HAS_CARRY: u32 = 4u;

@group(0) @binding(0) var<uniform>             params:      Params;
@group(0) @binding(1) var<storage, read>       weights:     array<vec4<f32>>;
@group(0) @binding(2) var<storage, read>       reserve:     array<f32>;
@group(0) @binding(3) var<storage, read>       lengths:     array<u32>;
@group(0) @binding(4) var<storage, read>       grad_output: array<f32>;
@group(0) @binding(5) var<storage, read_write> scratch:     array<f32>;

// The gradients of a unit before a step: of the gates in front of their activation, of h as far as
// it does not come through weight_hh, and of c.
struct Gradient {
    gates: array<f32, GRADS>,
    h: f32,
    c: f32,
    // c after the step, and h before its projection
    new_c: f32,
    unprojected: f32,
}

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

fn step_of(place: u32) -> u32 {
    return params.piece_start + params.piece_steps - 1u - place;
}

fn time_of(step: u32, direction: u32) -> u32 {
    return select(step, params.seq_len - 1u - step, is_reverse(direction));
}

// whether no gradient passes back to this step from the one behind it
fn is_cut(step: u32, direction: u32, row: u32) -> bool {
    let length = length_of(row);
    let skipped = select(0u, params.seq_len - length, is_reverse(direction));
    let next = step - skipped + 1u;
    return next < length && next % params.truncate == 0u;
}

// where dh is handed on
fn carry_h_at(direction: u32, row: u32, unit: u32) -> u32 {
    return (direction * params.batch + row) * params.state_size + unit;
}

// where dc is
fn carry_c_at(direction: u32, row: u32, unit: u32) -> u32 {
    return params.carry_c_first + (direction * params.batch + row) * params.hidden_size + unit;
}

// the token of a step among some steps, of which those of the reverse direction lie in order of
// time, too
fn token_of(step: u32, direction: u32, row: u32, first_step: u32, num_steps: u32) -> u32 {
    let place = step - first_step;
    let at = select(place, num_steps - 1u - place, is_reverse(direction));
    return ((direction - params.direction) * num_steps + at) * params.batch + row;
}

fn grads_at(step: u32, direction: u32, row: u32) -> u32 {
    let token = token_of(step, direction, row, params.piece_start, params.piece_steps);
    return params.grads_first + token * params.row_len;
}

fn saved_of(step: u32, direction: u32, row: u32, unit: u32) -> array<f32, SLOTS> {
    let token = token_of(step, direction, row, params.chunk_start, params.chunk_steps);
    let first = params.saved_first + token * params.saved_len + unit;
    var saved: array<f32, SLOTS>;
    // unroll
    for (var i = 0u; i < SLOTS; i++) {
        saved[i] = reserve[first + i * params.hidden_size];
    }
    return saved;
}

fn output_gradient(step: u32, direction: u32, row: u32, unit: u32) -> f32 {
    if (!has(HAS_GRAD_OUTPUT)) {
        return 0.0;
    }
    let time = time_of(step, direction) - params.grad_output_time;
    let token = time * params.grad_output_time_stride + row * params.grad_output_row_stride;
    let index = (token * params.num_directions + direction) * params.state_size + unit;
    return grad_output[params.grad_output_first + index];
}

// four rows k of a gate's block of weight_hh, in the column `unit`
fn weight_hh(direction: u32, k4: u32, gate: u32, unit: u32) -> vec4<f32> {
    let block = (direction - params.direction) * params.weights_direction;
    return weights[block + (k4 * NUM_GATES + gate) * params.state_size + unit];
}

// four rows k of weight_hr, in the column `unit`
fn weight_hr(direction: u32, k4: u32, unit: u32) -> vec4<f32> {
    let block = (direction - params.direction) * params.weights_direction;
    return weights[block + params.weight_hr_first + k4 * params.hidden_size + unit];
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

// the gradient that is multiplied with a gate's block of weight_hh
fn product_slot(gate: u32) -> u32 {
    return select(gate, 3u, SPLIT_N && gate == 2u);
}

// what the products outside of the loop read of a step; all zeros where the sequence has ended
fn store_gradient(step: u32, direction: u32, row: u32, unit: u32, gradient: Gradient) {
    let first = grads_at(step, direction, row) + unit;
    // unroll
    for (var i = 0u; i < GRADS; i++) {
        scratch[first + i * params.hidden_size] = gradient.gates[i];
    }
    var next = first + GRADS * params.hidden_size;
    if (KEEP_C) {
        scratch[next] = gradient.new_c;
        next += params.hidden_size;
    }
    if (PROJECTED) {
        scratch[next] = gradient.unprojected;
    }
}

fn dh_at(step: u32, direction: u32, row: u32) -> u32 {
    return grads_at(step, direction, row) + params.row_len - params.state_size;
}

fn store_dh(step: u32, direction: u32, row: u32, unit: u32, dh: f32) {
    if (KEEP_H) {
        scratch[dh_at(step, direction, row) + unit] = dh;
    }
}

// ONNX's clip bounds what goes into the activations; beyond it nothing depends on them
fn clipped(x: f32) -> f32 {
    return or_nan(clamp(x, -params.clip, params.clip), x);
}

fn unclipped_slope(x: f32, slope: f32) -> f32 {
    return select(slope, 0.0, abs(x) > params.clip);
}

// x / (1 + x)^2 of x = exp(-|u|): the slope of the sigmoid at u, exact where it is saturated
fn sigmoid_slope(u: f32) -> f32 {
    let x = exp(-abs(u));
    return x / ((1.0 + x) * (1.0 + x));
}

fn tanh_slope(u: f32) -> f32 {
    return 4.0 * sigmoid_slope(2.0 * u);
}
