// recurrent_backward_no_reset: for the cells that have one phase per step. Same names as in
// recurrent_backward_cell_gru_reset_before.wgsl.

// never called
fn reset_backward(direction: u32, saved: array<f32, SLOTS>, d_reset: f32) -> vec2<f32> {
    return vec2<f32>();
}
