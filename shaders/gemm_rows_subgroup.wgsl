// gemm_rows_subgroup: the elements of a that all lanes need; each lane loads some and the subgroup
// hands them round. Same names as gemm_rows_uniform.wgsl.
// Holds       the subgroup size is LANES, a constant of the device; ROWS == LANES * ROWS_PER_LANE

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) subgroup_index: u32,
}

// column k of rows row_start .. row_start + ROWS; the last row again past the end
fn rows_at(lane: Lane, row_start: u32, k: u32) -> array<f32, ROWS> {
    var value: array<f32, ROWS>;
    // unroll
    for (var i = 0u; i < ROWS_PER_LANE; i++) {
        let own = a_at(min(row_start + i * LANES + lane.subgroup_index, params.m - 1u), k);
        // unroll
        for (var j = 0u; j < LANES; j++) {
            value[i * LANES + j] = subgroupBroadcast(own, j);
        }
    }
    return value;
}
