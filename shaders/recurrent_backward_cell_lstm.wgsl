// recurrent_backward_cell_lstm: gradients of recurrent_cell_lstm.wgsl. Saved: the sums i, f, g, o
// without the peepholes, c, h.

fn cell_backward(
    direction: u32,
    saved: array<f32, SLOTS>,
    peephole: vec3<f32>,
    dh: f32,
    dc: f32,
) -> Gradient {
    let c = saved[4];
    let i = gate_slope(direction, saved[0] + peephole[0] * c);
    var f = vec2<f32>(1.0 - i[0], 0.0);
    if (!COUPLED) {
        f = gate_slope(direction, saved[1] + peephole[1] * c);
    }
    let g = candidate_slope(direction, saved[2]);
    let new_c = f[0] * c + i[0] * g[0];
    let o = gate_slope(direction, saved[3] + peephole[2] * new_c);
    let out = output_slope(direction, new_c);

    let d_o = dh * out[0] * o[1];
    let d_c = dc + dh * o[0] * out[1] + peephole[2] * d_o;
    var d_f = 0.0;
    var d_i = d_c * (g[0] - c) * i[1];
    if (!COUPLED) {
        d_f = d_c * c * f[1];
        d_i = d_c * g[0] * i[1];
    }
    let d_g = d_c * i[0] * g[1];
    let before = d_c * f[0] + peephole[0] * d_i + peephole[1] * d_f;
    let gates = array<f32, GRADS>(d_i, d_f, d_g, d_o);
    return Gradient(gates, 0.0, before, new_c, o[0] * out[0]);
}
