// attention_backward_pairs: the gradients of pairs for kernels whose rows are of either side
// (ROWS_ARE_KEYS), from the two products of a row with four others.

// of a row and four others, of keys from a multiple of four on; block: their class
fn gradients_of(
    tile: Tile,
    row: u32,
    others: vec4<u32>,
    product: vec4<f32>,
    grad_weight: vec4<f32>,
    block: u32,
) -> PairGradients {
    var pairs = Pairs(vec4<u32>(row), others);
    var log_sum_exp: vec4<f32>;
    var delta: vec4<f32>;
    var keep = vec4<bool>();
    if (ROWS_ARE_KEYS) {
        pairs = Pairs(others, vec4<u32>(row));
        // unroll
        for (var e = 0u; e < 4u; e++) {
            let own = statistics(tile, others[e]);
            log_sum_exp[e] = own.x;
            delta[e] = own.y;
            if (DROPOUT) {
                keep[e] = kept(tile, others[e], row / 4u)[row % 4u];
            }
        }
    } else {
        let own = statistics(tile, row);
        log_sum_exp = vec4<f32>(own.x);
        delta = vec4<f32>(own.y);
        if (DROPOUT) {
            keep = kept(tile, row, others.x / 4u);
        }
    }
    return pair_gradients(tile, pairs, product, grad_weight, log_sum_exp, delta, keep, block);
}
