// min_recurrent_cell_lstm: gates f, i, n.
//     f = sigmoid(x_f)   i = sigmoid(x_i)   n = g(x_n)   h' = f / (f + i) h + i / (f + i) n
// By f / (f + i) = sigmoid(log f - log i), which also holds where both gates are closed.
// Source: Feng et al. 2024, Were RNNs all we needed?, section 3.2.

// -log sigmoid(x)
fn closed(x: f32) -> f32 {
    return max(-x, 0.0) + log(1.0 + exp(-abs(x)));
}

fn mix_of(x: array<f32, NUM_GATES>) -> Mix {
    let more_i = closed(x[0]) - closed(x[1]);
    let keep = gate(-more_i);
    let take = gate(more_i);
    var slope: array<f32, NUM_GATES>;
    slope[0] = keep * take * gate(-x[0]);
    slope[1] = -keep * take * gate(-x[1]);
    return Mix(keep, take, slope);
}
