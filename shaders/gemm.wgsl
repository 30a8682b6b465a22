// gemm: output = a b, tiles in workgroup memory and register blocks.
//
// Every element is one sum over k in increasing order, whatever the tile.
// Source: Volkov and Demmel 2008, Benchmarking GPUs to tune dense linear algebra.
//
// Layout      see gemm_problem.wgsl
// Grid        one workgroup per ROW_TILE x 64 elements, folded to two dimensions
// Workgroup   8 x 8 invocations; invocation (x, y) computes rows y + 8r and the vectors of columns
//             4x and 32 + 4x
// Memory      wg_a [K_CHUNK, ROW_TILE], wg_b [K_CHUNK, 16] vectors of four columns
// Holds       A_BY_ROWS tells along which axis a is contiguous; any k, m, n
// Precision   f32
// Parts       common.wgsl, element_any.wgsl, gemm_problem.wgsl

const ROW_TILE: u32 = 8u * ROWS;
const K_CHUNK: u32 = 16u;
const WORKGROUP_SIZE: u32 = 64u;

var<workgroup> wg_a: array<f32, K_CHUNK * ROW_TILE>;
var<workgroup> wg_b: array<vec4<f32>, K_CHUNK * 16u>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn gemm(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let row_start = group / params.column_tiles * ROW_TILE;
    let column_start = group % params.column_tiles * 64u;
    let x = lane % 8u;
    let y = lane / 8u;

    var acc: array<array<vec4<f32>, 2>, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        acc[r][0] = vec4<f32>();
        acc[r][1] = vec4<f32>();
    }
    for (var k_start = 0u; k_start < params.k; k_start += K_CHUNK) {
        // wg_a and wg_b are free
        workgroupBarrier();
        for (var i = lane; i < K_CHUNK * ROW_TILE; i += WORKGROUP_SIZE) {
            // neighbouring invocations read along the contiguous axis
            let k = select(i / ROW_TILE, i % K_CHUNK, A_BY_ROWS);
            let row = select(i % ROW_TILE, i / K_CHUNK, A_BY_ROWS);
            var staged = 0.0;
            if (row_start + row < params.m && k_start + k < params.k) {
                staged = a_at(row_start + row, k_start + k);
            }
            wg_a[k * ROW_TILE + row] = staged;
        }
        for (var i = lane; i < K_CHUNK * 16u; i += WORKGROUP_SIZE) {
            let k = k_start + i / 16u;
            let column = column_start + i % 16u * 4u;
            var staged = vec4<f32>();
            // unroll
            for (var c = 0u; c < 4u; c++) {
                if (k < params.k && column + c < params.n) {
                    staged[c] = b_at(k, column + c);
                }
            }
            wg_b[i] = staged;
        }
        // wg_a and wg_b are visible
        workgroupBarrier();
        for (var k = 0u; k < K_CHUNK; k++) {
            let b0 = wg_b[k * 16u + x];
            let b1 = wg_b[k * 16u + 8u + x];
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let value = wg_a[k * ROW_TILE + y + 8u * r];
                acc[r][0] = fma(vec4<f32>(value), b0, acc[r][0]);
                acc[r][1] = fma(vec4<f32>(value), b1, acc[r][1]);
            }
        }
    }
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        let row = row_start + y + 8u * r;
        // unroll
        for (var v = 0u; v < 2u; v++) {
            // unroll
            for (var c = 0u; c < 4u; c++) {
                let column = column_start + 32u * v + 4u * x + c;
                if (row < params.m && column < params.n) {
                    store(row, column, acc[r][v][c]);
                }
            }
        }
    }
}
