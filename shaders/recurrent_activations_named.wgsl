// recurrent_activations_named: functions by number, four bits of params.activations each, so that
// all choices are one kernel. Same names as recurrent_activations_default.wgsl.
// Source: ONNX, operators RNN, GRU and LSTM, with the default alpha and beta.

const SIGMOID: u32 = 0u;
const TANH: u32 = 1u;
const RELU_BY_NAME: u32 = 2u;
const AFFINE: u32 = 3u;
const LEAKY_RELU: u32 = 4u;
const THRESHOLDED_RELU: u32 = 5u;
const SCALED_TANH: u32 = 6u;
const HARD_SIGMOID: u32 = 7u;
const ELU: u32 = 8u;
const SOFTSIGN: u32 = 9u;
const SOFTPLUS: u32 = 10u;

fn activation(direction: u32, role: u32, x: f32) -> f32 {
    switch (params.activations >> (4u * (3u * direction + role))) & 15u {
        case SIGMOID: {
            return sigmoid(x);
        }
        case TANH, SCALED_TANH: {
            return tanh_bounded(x);
        }
        case RELU_BY_NAME: {
            return or_nan(max(x, 0.0), x);
        }
        case LEAKY_RELU: {
            return select(x, 0.01 * x, x < 0.0);
        }
        case THRESHOLDED_RELU: {
            return or_nan(select(0.0, x, x > 1.0), x);
        }
        case HARD_SIGMOID: {
            return or_nan(clamp(0.2 * x + 0.5, 0.0, 1.0), x);
        }
        case ELU: {
            // exp(x) - 1 with the digits of small x: 2 t / (1 - t), t = tanh(x / 2)
            let t = tanh_bounded(0.5 * min(x, 0.0));
            return select(x, 2.0 * t / (1.0 - t), x < 0.0);
        }
        case SOFTSIGN: {
            return x / (1.0 + abs(x));
        }
        case SOFTPLUS: {
            // ln(1 + u), where u is small by its series
            let u = exp(-abs(x));
            let series = fma(u * u, fma(u, 1.0 / 3.0, -0.5), u);
            return max(x, 0.0) + select(log(1.0 + u), series, u < 0.00390625);
        }
        // AFFINE
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
