// recurrent_cell_gru: gates r, z, n; the reset is applied after the product (ONNX:
// linear_before_reset).
//     r = sigmoid(x_r + h_r)   z = sigmoid(x_z + h_z)   n = tanh(x_n + r (h_n + bias))
//     h' = (1 - z) n + z h
// Source: Cho et al. 2014, in the variant of cuDNN and PyTorch.

fn cell(
    direction: u32,
    x: array<f32, NUM_GATES>,
    h: array<f32, NUM_GATES>,
    bias: vec3<f32>,
    state: State,
) -> State {
    let r = gate_activation(direction, x[0] + h[0]);
    let z = gate_activation(direction, x[1] + h[1]);
    let n = candidate_activation(direction, x[2] + r * (h[2] + bias[0]));
    return State((1.0 - z) * n + z * state.h, 0.0);
}
