// gemm_rows_uniform: the elements of a that all lanes need, each by a load at a uniform address.
// Same names as gemm_rows_subgroup.wgsl.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

// column k of rows row_start .. row_start + ROWS; the last row again past the end
fn rows_at(lane: Lane, row_start: u32, k: u32) -> array<f32, ROWS> {
    var value: array<f32, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        value[r] = a_at(min(row_start + r, params.m - 1u), k);
    }
    return value;
}
