// recurrent_backward_cell_rnn: gradients of recurrent_cell_rnn.wgsl. Saved: the sum that goes into
// the activation, h.

fn cell_backward(
    direction: u32,
    saved: array<f32, SLOTS>,
    none: vec3<f32>,
    dh: f32,
    dc: f32,
) -> Gradient {
    let y = candidate_slope(direction, saved[0]);
    return Gradient(array<f32, GRADS>(dh * y[1]), 0.0, 0.0, 0.0, 0.0);
}
