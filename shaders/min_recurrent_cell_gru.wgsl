// min_recurrent_cell_gru: gates z, n.
//     z = sigmoid(x_z)   n = g(x_n)   h' = (1 - z) h + z n
// Source: Feng et al. 2024, Were RNNs all we needed?, section 3.1.

fn mix_of(x: array<f32, NUM_GATES>) -> Mix {
    let keep = gate(-x[0]);
    let take = gate(x[0]);
    var slope: array<f32, NUM_GATES>;
    slope[0] = -keep * take;
    return Mix(keep, take, slope);
}
