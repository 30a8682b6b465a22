// recurrent_no_reset: for the cells that have one phase per step. Same names as in
// recurrent_cell_gru_reset_before.wgsl.

// never called
fn reset(
    direction: u32,
    x: array<f32, NUM_GATES>,
    h: array<f32, NUM_GATES>,
    state_h: f32,
) -> f32 {
    return state_h;
}
