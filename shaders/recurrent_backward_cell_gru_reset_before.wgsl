// recurrent_backward_cell_gru_reset_before: gradients of recurrent_cell_gru_reset_before.wgsl, in
// two phases: those of z and n, then by way of the product of n that of r. Saved: the sums r, z, n,
// and h. Behind the gradients r, z, n stands r h, which weight_hh of n is multiplied with.

fn cell_backward(
    direction: u32,
    saved: array<f32, SLOTS>,
    none: vec3<f32>,
    dh: f32,
    dc: f32,
) -> Gradient {
    let r = gate_slope(direction, saved[0]);
    let z = gate_slope(direction, saved[1]);
    let n = candidate_slope(direction, saved[2]);
    let d_z = dh * (saved[3] - n[0]) * z[1];
    let d_n = dh * (1.0 - z[0]) * n[1];
    let gates = array<f32, GRADS>(0.0, d_z, d_n, r[0] * saved[3]);
    return Gradient(gates, dh * z[0], 0.0, 0.0, 0.0);
}

// the gradients of r in front of its activation, and of h by way of r h
fn reset_backward(direction: u32, saved: array<f32, SLOTS>, d_reset: f32) -> vec2<f32> {
    let r = gate_slope(direction, saved[0]);
    return d_reset * vec2<f32>(saved[3] * r[1], r[0]);
}
