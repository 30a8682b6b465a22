// gemm_broadcast: output = a b with columns across the lanes, for devices whose lanes are the
// registers of a CPU. An element of a is the same for all lanes: a load and a broadcast.
//
// Every element is one sum over k in increasing order, whatever the tile.
//
// Layout      see gemm_problem.wgsl
// Grid        one workgroup per ROWS x (WORKGROUP_SIZE * COLUMNS) elements, folded to two
//             dimensions
// Workgroup   WORKGROUP_SIZE invocations; invocation i computes columns i + c * WORKGROUP_SIZE
// Memory      none, no barrier
// Holds       any k, m, n
// Precision   f32
// Parts       common.wgsl, element_any.wgsl, gemm_problem.wgsl, in_order.wgsl

// columns of a at a time
const STEP: u32 = 4u;

@compute @workgroup_size(WORKGROUP_SIZE)
fn gemm_broadcast(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let row_start = group / params.column_tiles * ROWS;
    let column_start = group % params.column_tiles * (WORKGROUP_SIZE * COLUMNS) + lane;

    var acc: array<array<f32, COLUMNS>, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var c = 0u; c < COLUMNS; c++) {
            acc[r][c] = 0.0;
        }
    }
    // what does not change with k: in a loop each parameter is a load with a check of its bounds
    var row_at: array<u32, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        row_at[r] = a_row_at(min(row_start + r, params.m - 1u));
    }
    var column_at: array<u32, COLUMNS>;
    // unroll
    for (var c = 0u; c < COLUMNS; c++) {
        let own = min(column_start + c * WORKGROUP_SIZE, params.n - 1u);
        column_at[c] = own * params.b_column;
    }
    let a_column = params.a_column;
    let whole = params.k - params.k % STEP;
    for (var start = 0u; start < whole; start += STEP) {
        var column: array<array<f32, COLUMNS>, STEP>;
        // unroll
        for (var i = 0u; i < 4u; i++) {
            let b_row = b_row_at(start + i);
            // unroll
            for (var c = 0u; c < COLUMNS; c++) {
                column[i][c] = b_element(b_row + column_at[c]);
            }
        }
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            for (var time = 0u; time < once(); time++) {
                // unroll
                for (var i = 0u; i < 4u; i++) {
                    let value = a_element(row_at[r] + (start + i) * a_column);
                    // unroll
                    for (var c = 0u; c < COLUMNS; c++) {
                        acc[r][c] = fma(value, column[i][c], acc[r][c]);
                    }
                }
            }
        }
    }
    for (var k = whole; k < params.k; k++) {
        let b_row = b_row_at(k);
        // unroll
        for (var c = 0u; c < COLUMNS; c++) {
            let column = b_element(b_row + column_at[c]);
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                acc[r][c] = fma(a_element(row_at[r] + k * a_column), column, acc[r][c]);
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
