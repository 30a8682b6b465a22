// recurrent_cell_lstm: gates i, f, g, o.
//     i = sigmoid(x_i + h_i + p_i c)   f = sigmoid(x_f + h_f + p_f c), or 1 - i with COUPLED
//     g = tanh(x_g + h_g)              c' = f c + i g
//     o = sigmoid(x_o + h_o + p_o c')  h' = o tanh(c')
// with peepholes p if there are three weights per unit.
// Source: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000, as in PyTorch;
// peepholes of Gers and Schmidhuber 2000, as in ONNX.

fn gate(direction: u32, x: f32, h: f32, peephole: f32, c: f32) -> f32 {
    var sum = x + h;
    if (NUM_UNIT_WEIGHTS == 3u) {
        sum += peephole * c;
    }
    return gate_activation(direction, sum);
}

fn cell(
    direction: u32,
    x: array<f32, NUM_GATES>,
    h: array<f32, NUM_GATES>,
    peephole: vec3<f32>,
    state: State,
) -> State {
    let i = gate(direction, x[0], h[0], peephole[0], state.c);
    var f = 1.0 - i;
    if (!COUPLED) {
        f = gate(direction, x[1], h[1], peephole[1], state.c);
    }
    let g = candidate_activation(direction, x[2] + h[2]);
    let c = f * state.c + i * g;
    let o = gate(direction, x[3], h[3], peephole[2], c);
    return State(o * output_activation(direction, c), c);
}
