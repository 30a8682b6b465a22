// recurrent_slopes_named: value and slope of the functions of recurrent_activations_named.wgsl,
// which is part of the kernel, too. Same names as recurrent_slopes_default.wgsl. At a corner the
// slope is that of the side on which the function is x times a constant or 0, as in the reference.

fn slope(direction: u32, role: u32, x: f32) -> f32 {
    switch (params.activations >> (4u * (3u * direction + role))) & 15u {
        case SIGMOID: {
            return sigmoid_slope(x);
        }
        case TANH, SCALED_TANH: {
            return tanh_slope(x);
        }
        case RELU_BY_NAME: {
            return select(0.0, 1.0, x > 0.0);
        }
        case LEAKY_RELU: {
            return select(1.0, 0.01, x < 0.0);
        }
        case THRESHOLDED_RELU: {
            return select(0.0, 1.0, x > 1.0);
        }
        case HARD_SIGMOID: {
            let y = 0.2 * x + 0.5;
            return select(0.0, 0.2, y > 0.0 && y < 1.0);
        }
        case ELU: {
            return select(1.0, exp(min(x, 0.0)), x < 0.0);
        }
        case SOFTSIGN: {
            let root = 1.0 / (1.0 + abs(x));
            return root * root;
        }
        case SOFTPLUS: {
            return sigmoid(x);
        }
        // AFFINE
        default: {
            return 1.0;
        }
    }
}

fn gate_slope(direction: u32, x: f32) -> vec2<f32> {
    return vec2<f32>(gate_activation(direction, x), unclipped_slope(x, slope(direction, 0u, x)));
}

fn candidate_slope(direction: u32, x: f32) -> vec2<f32> {
    let y = candidate_activation(direction, x);
    return vec2<f32>(y, unclipped_slope(x, slope(direction, 1u, x)));
}

// of the cell state, which clip does not bound
fn output_slope(direction: u32, x: f32) -> vec2<f32> {
    return vec2<f32>(output_activation(direction, x), slope(direction, 2u, x));
}
