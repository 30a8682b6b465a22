// recurrent_cell_rnn: h' = tanh(x + h), or max(x + h, 0) with RELU.
// Source: Elman 1990.

fn cell(
    x: array<f32, NUM_GATES>,
    h: array<f32, NUM_GATES>,
    none: vec3<f32>,
    state: State,
) -> State {
    let sum = clipped(x[0] + h[0]);
    if (RELU) {
        return State(max(sum, 0.0), 0.0);
    }
    return State(tanh_bounded(sum), 0.0);
}
