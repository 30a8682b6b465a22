// gemm_broadcast: output = a b with columns across the lanes, for devices whose lanes are the
// registers of a CPU. The elements of a are the same for all lanes and reach them through rows_at.
//
// Every element is one sum over k in increasing order, whatever the tile.
//
// Layout      see gemm_problem.wgsl
// Grid        one workgroup per ROWS x (WORKGROUP_SIZE * COLUMNS) elements, folded to two
//             dimensions
// Workgroup   WORKGROUP_SIZE invocations; invocation i computes columns i + c * WORKGROUP_SIZE
// Memory      none, no barrier
// Holds       any k, m, n; what the rows part asks for
// Precision   f32
// Parts       common.wgsl, element_any.wgsl, gemm_problem.wgsl, gemm_rows_uniform.wgsl or
//             gemm_rows_subgroup.wgsl

@compute @workgroup_size(WORKGROUP_SIZE)
fn gemm_broadcast(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let row_start = group / params.column_tiles * ROWS;
    let column_start = group % params.column_tiles * (WORKGROUP_SIZE * COLUMNS) + lane.index;

    var acc: array<array<f32, COLUMNS>, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var c = 0u; c < COLUMNS; c++) {
            acc[r][c] = 0.0;
        }
    }
    for (var k = 0u; k < params.k; k++) {
        var column: array<f32, COLUMNS>;
        // unroll
        for (var c = 0u; c < COLUMNS; c++) {
            column[c] = b_at(k, min(column_start + c * WORKGROUP_SIZE, params.n - 1u));
        }
        let value = rows_at(lane, row_start, k);
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            // unroll
            for (var c = 0u; c < COLUMNS; c++) {
                acc[r][c] = fma(value[r], column[c], acc[r][c]);
            }
        }
    }
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var c = 0u; c < COLUMNS; c++) {
            let column = column_start + c * WORKGROUP_SIZE;
            if (row_start + r < params.m && column < params.n) {
                store(row_start + r, column, acc[r][c]);
            }
        }
    }
}
