// recurrent_activations_default: the functions that cells have by themselves. Same names as
// recurrent_activations_named.wgsl.

fn gate_activation(direction: u32, x: f32) -> f32 {
    return sigmoid(clipped(x));
}

fn candidate_activation(direction: u32, x: f32) -> f32 {
    if (RELU) {
        return or_nan(max(clipped(x), 0.0), x);
    }
    return tanh_bounded(clipped(x));
}

// of the cell state, which clip does not bound
fn output_activation(direction: u32, x: f32) -> f32 {
    return tanh_bounded(x);
}
