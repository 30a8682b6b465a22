// recurrent_save: with SAVE, what the backward pass needs of a step, in the place of its gates_x.
//
// Each [hidden_size]: what goes into the activations (the peepholes left out), of a GRU's n both
// sums, of an LSTM c before the step; then, see save_h, h before the step. Where the sequence has
// ended all are 0: no gradient comes from there, but the products of the backward pass read the
// row.

// the second bias of a GRU's n is scaled by r, so that its two sums are kept apart
const RESET_AFTER: bool = NUM_UNIT_WEIGHTS == 1u;

fn save(
    moment: Moment,
    direction: u32,
    row: u32,
    unit: u32,
    x: array<f32, NUM_GATES>,
    h: array<f32, NUM_GATES>,
    bias: vec3<f32>,
    c: f32,
) {
    let first = gates_at(moment, direction, row) + unit;
    // unroll
    for (var g = 0u; g < NUM_GATES; g++) {
        set_scratch(first + g * params.hidden_size, x[g] + h[g]);
    }
    let next = first + NUM_GATES * params.hidden_size;
    if (RESET_AFTER) {
        set_scratch(next - params.hidden_size, x[NUM_GATES - 1u]);
        set_scratch(next, h[NUM_GATES - 1u] + bias[0]);
    }
    if (HAS_CELL) {
        set_scratch(next, c);
    }
}

fn save_nothing(moment: Moment, direction: u32, row: u32, unit: u32) {
    if (params.seq_len > 0u) {
        let end = params.row_len - params.state_size;
        for (var i = unit; i < end; i += params.hidden_size) {
            set_scratch(gates_at(moment, direction, row) + i, 0.0);
        }
    }
}

fn save_h(moment: Moment, direction: u32, row: u32, unit: u32, h: f32) {
    if (params.seq_len > 0u) {
        let first = gates_at(moment, direction, row) + params.row_len - params.state_size;
        set_scratch(first + unit, select(0.0, h, moment.inside));
    }
}
