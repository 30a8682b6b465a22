// recurrent_cell_lstm: gates i, f, g, o.
//     i = sigmoid(x_i + h_i)   f = sigmoid(x_f + h_f)
//     g = tanh(x_g + h_g)   o = sigmoid(x_o + h_o)
//     c' = f c + i g           h' = o tanh(c')
// Source: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000, as in PyTorch.

fn cell(x: array<f32, NUM_GATES>, h: array<f32, NUM_GATES>, bias: f32, state: State) -> State {
    let i = sigmoid(clipped(x[0] + h[0]));
    let f = sigmoid(clipped(x[1] + h[1]));
    let g = tanh_bounded(clipped(x[2] + h[2]));
    let o = sigmoid(clipped(x[3] + h[3]));
    let c = f * state.c + i * g;
    return State(o * tanh_bounded(c), c);
}
