// recurrent_backward_cell_gru: gradients of recurrent_cell_gru.wgsl. Saved: the sums r, z, x_n and
// h_n with its bias, h. The gates have four gradients: r, z, n by way of x, n by way of h.

fn cell_backward(
    direction: u32,
    saved: array<f32, SLOTS>,
    none: vec3<f32>,
    dh: f32,
    dc: f32,
) -> Gradient {
    let r = gate_slope(direction, saved[0]);
    let z = gate_slope(direction, saved[1]);
    let n = candidate_slope(direction, saved[2] + r[0] * saved[3]);
    let d_z = dh * (saved[4] - n[0]) * z[1];
    let d_n = dh * (1.0 - z[0]) * n[1];
    let d_r = d_n * saved[3] * r[1];
    let gates = array<f32, GRADS>(d_r, d_z, d_n, d_n * r[0]);
    return Gradient(gates, dh * z[0], 0.0, 0.0, 0.0);
}
