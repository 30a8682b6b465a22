// recurrent_cell_rnn: h' = tanh(x + h), or max(x + h, 0) with RELU.
// Source: Elman 1990.

fn cell(
    direction: u32,
    x: array<f32, NUM_GATES>,
    h: array<f32, NUM_GATES>,
    none: vec3<f32>,
    state: State,
) -> State {
    return State(candidate_activation(direction, x[0] + h[0]), 0.0);
}
