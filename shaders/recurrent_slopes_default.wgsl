// recurrent_slopes_default: value and slope of the functions that cells have by themselves. Same
// names as recurrent_slopes_named.wgsl.

fn gate_slope(direction: u32, x: f32) -> vec2<f32> {
    return vec2<f32>(sigmoid(clipped(x)), unclipped_slope(x, sigmoid_slope(x)));
}

fn candidate_slope(direction: u32, x: f32) -> vec2<f32> {
    if (RELU) {
        let y = or_nan(max(clipped(x), 0.0), x);
        return vec2<f32>(y, unclipped_slope(x, select(0.0, 1.0, x > 0.0)));
    }
    return vec2<f32>(tanh_bounded(clipped(x)), unclipped_slope(x, tanh_slope(x)));
}

// of the cell state, which clip does not bound
fn output_slope(direction: u32, x: f32) -> vec2<f32> {
    return vec2<f32>(tanh_bounded(x), tanh_slope(x));
}
