// attention_cooperative_products: the products of attention_cooperative.wgsl, tile by tile.

// wg_products = wg_query wg_stage^T, [ROWS, KEYS]
fn products_of_keys(subgroup: u32) {
    const ACROSS = KEYS / EDGE;
    for (var t = subgroup; t < ROWS / EDGE * ACROSS; t += SUBGROUPS) {
        let first_row = t / ACROSS * EDGE;
        let first_key = t % ACROSS * EDGE;
        var sum = Sum();
        for (var d = 0u; d < HEAD_PAD; d += EDGE) {
            // T: by rows; the keys are the columns of the second factor
            let left = coopLoadT<Left>(
                &wg_query[first_row * QUERY_PITCH + d], QUERY_PITCH,
            );
            let right = coopLoad<Right>(
                &wg_stage[first_key * STAGE_PITCH + d], STAGE_PITCH,
            );
            sum = coopMultiplyAdd(left, right, sum);
        }
        coopStoreT(sum, &wg_products[first_row * PRODUCT_PITCH + first_key], PRODUCT_PITCH);
    }
}

// wg_products = wg_weights wg_stage, [ROWS, VALUE_PAD]
fn products_of_values(subgroup: u32) {
    const ACROSS = VALUE_PAD / EDGE;
    for (var t = subgroup; t < ROWS / EDGE * ACROSS; t += SUBGROUPS) {
        let first_row = t / ACROSS * EDGE;
        let first_d = t % ACROSS * EDGE;
        var sum = Sum();
        for (var k = 0u; k < KEYS; k += EDGE) {
            let left = coopLoadT<Left>(
                &wg_weights[first_row * WEIGHT_PITCH + k], WEIGHT_PITCH,
            );
            let right = coopLoadT<Right>(
                &wg_stage[k * STAGE_PITCH + first_d], STAGE_PITCH,
            );
            sum = coopMultiplyAdd(left, right, sum);
        }
        coopStoreT(sum, &wg_products[first_row * PRODUCT_PITCH + first_d], PRODUCT_PITCH);
    }
}
