// recurrent_activations_named: functions by number, four bits of params.activations each, so that
// all choices are one kernel. Same names as recurrent_activations_default.wgsl.
// Source: ONNX, operators RNN, GRU and LSTM, with the default alpha and beta.

fn activation(direction: u32, role: u32, x: f32) -> f32 {
    switch (params.activations >> (4u * (3u * direction + role))) & 15u {
        case 0u: {
            return sigmoid(x);
        }
        case 1u, 6u: {
            return tanh_bounded(x);
        }
        case 2u: {
            return max(x, 0.0);
        }
        case 4u: {
            return select(x, 0.01 * x, x < 0.0);
        }
        case 5u: {
            return select(0.0, x, x > 1.0);
        }
        case 7u: {
            return clamp(0.2 * x + 0.5, 0.0, 1.0);
        }
        case 8u: {
            return select(x, exp(min(x, 0.0)) - 1.0, x < 0.0);
        }
        case 9u: {
            return x / (1.0 + abs(x));
        }
        case 10u: {
            return max(x, 0.0) + log(1.0 + exp(-abs(x)));
        }
        default: {
            return x;
        }
    }
}

fn gate_activation(direction: u32, x: f32) -> f32 {
    return activation(direction, 0u, clipped(x));
}

fn candidate_activation(direction: u32, x: f32) -> f32 {
    return activation(direction, 1u, clipped(x));
}

// of the cell state, which clip does not bound
fn output_activation(direction: u32, x: f32) -> f32 {
    return activation(direction, 2u, x);
}
