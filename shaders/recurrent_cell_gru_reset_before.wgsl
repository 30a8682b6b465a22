// recurrent_cell_gru_reset_before: gates r, z, n; the reset is applied to h, before the product.
//     r = sigmoid(x_r + h_r)   z = sigmoid(x_z + h_z)   n = tanh(x_n + weight_hh_n (r h))
//     h' = (1 - z) n + z h
// so that a step has two phases: the products of r and z, then that of n. The biases are all in x.
// Source: Cho et al. 2014; ONNX with linear_before_reset = 0.

// what the second phase multiplies in place of h
fn reset(
    direction: u32,
    x: array<f32, NUM_GATES>,
    h: array<f32, NUM_GATES>,
    state_h: f32,
) -> f32 {
    return gate_activation(direction, x[0] + h[0]) * state_h;
}

fn cell(
    direction: u32,
    x: array<f32, NUM_GATES>,
    h: array<f32, NUM_GATES>,
    none: vec3<f32>,
    state: State,
) -> State {
    let z = gate_activation(direction, x[1] + h[1]);
    let n = candidate_activation(direction, x[2] + h[2]);
    return State((1.0 - z) * n + z * state.h, 0.0);
}
