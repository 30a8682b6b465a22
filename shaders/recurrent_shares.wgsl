// recurrent_shares: sums that SPLIT invocations share: invocation (u, s) leaves its share of each
// of the UNIT_SUMS sums of unit u, and add_shares adds them in the order of the shares.

const WORKGROUP_SIZE: u32 = UNITS * SPLIT;

// [SPLIT, UNITS, UNIT_SUMS]; the sums take the place of the first shares
var<workgroup> wg_partial: array<f32, WORKGROUP_SIZE * UNIT_SUMS>;

fn add_shares(lane: u32) {
    if (SPLIT > 1u) {
        // wg_partial is visible
        workgroupBarrier();
        for (var i = lane; i < UNITS * UNIT_SUMS; i += WORKGROUP_SIZE) {
            var sum = wg_partial[i];
            for (var s = 1u; s < SPLIT; s++) {
                sum += wg_partial[s * UNITS * UNIT_SUMS + i];
            }
            wg_partial[i] = sum;
        }
    }
    // wg_partial is visible
    workgroupBarrier();
}
