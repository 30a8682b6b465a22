// attention_backward_cooperative_sums: the sums of gradients on their way from matrices to where
// invocations see them. A subgroup has every SPLITth tile of its rows' gradients.

alias Sums = array<Sum, SUM_TILES>;

// columns first .. first + OTHERS of the sums, in wg_products
@diagnostic(off, derivative_uniformity)
fn store_sums(lane: Lane, sums: ptr<function, Sums>, first: u32) {
    let first_row = lane.index / SUBGROUP_SIZE / SPLIT * EDGE;
    let part = lane.index / SUBGROUP_SIZE % SPLIT;
    // unroll
    for (var t = 0u; t < SUM_TILES; t++) {
        let column = t * SPLIT * EDGE;
        if (column / OTHERS == first / OTHERS) {
            let at = first_row * PRODUCT_PITCH + column - first + part * EDGE;
            coopStoreT((*sums)[t], &wg_products[at], PRODUCT_PITCH);
        }
    }
}

// the sums of the others' first vectors times `ratio`, those of the second ones `second_ratio`
@diagnostic(off, derivative_uniformity)
fn rescale(lane: Lane, sums: ptr<function, Sums>, ratio: f32, second_ratio: f32) {
    let first_row = lane.index / SUBGROUP_SIZE / SPLIT * EDGE;
    let part = lane.index / SUBGROUP_SIZE % SPLIT;
    let own = lane.index / ROW_LANES;
    for (var first = 0u; first < SUM_PAD; first += OTHERS) {
        store_sums(lane, sums, first);
        // wg_products is visible
        workgroupBarrier();
        for (var d = lane.index % ROW_LANES; d < OTHERS; d += ROW_LANES) {
            let factor = select(ratio, second_ratio, first + d >= HEAD_PAD);
            wg_products[own * PRODUCT_PITCH + d] *= factor;
        }
        // wg_products is visible
        workgroupBarrier();
        // unroll
        for (var t = 0u; t < SUM_TILES; t++) {
            let column = t * SPLIT * EDGE;
            if (column / OTHERS == first / OTHERS) {
                let at = first_row * PRODUCT_PITCH + column - first + part * EDGE;
                (*sums)[t] = coopLoadT<Sum>(&wg_products[at], PRODUCT_PITCH);
            }
        }
        // wg_products is free
        workgroupBarrier();
    }
}
