// recurrent_backward_sums: sums over the tokens, for the gradients of biases and peepholes.
//
// output[column] = sum over the rows of a[row, column], times factor[row, column] with FACTOR;
// added to what output holds with ACCUMULATE.
//
// Layout      a, factor [num_rows, num_columns], rows a_row and factor_row elements apart; output
//             [num_columns]
// Grid        one workgroup per 32 columns, folded to two dimensions
// Workgroup   32 * 8 invocations; invocation (c, s) sums every eighth row from s on
// Memory      wg_sums: the sums of the shares
// Holds       any sizes
// Precision   f32; the eight shares are added in order
// Parts       common.wgsl

struct Params {
    num_rows: u32,
    num_columns: u32,
    num_groups: u32,
    a_first: u32,
    a_row: u32,
    factor_first: u32,
    factor_row: u32,
    output_first: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       a:      array<f32>;
@group(0) @binding(2) var<storage, read>       factor: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

const COLUMNS: u32 = 32u;
const SHARES: u32 = 8u;

var<workgroup> wg_sums: array<f32, COLUMNS * SHARES>;

@compute @workgroup_size(COLUMNS * SHARES)
fn recurrent_backward_sums(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let column = group * COLUMNS + lane % COLUMNS;
    var sum = 0.0;
    if (column < params.num_columns) {
        for (var row = lane / COLUMNS; row < params.num_rows; row += SHARES) {
            let term = a[params.a_first + row * params.a_row + column];
            if (FACTOR) {
                let by = factor[params.factor_first + row * params.factor_row + column];
                sum = fma(term, by, sum);
            } else {
                sum += term;
            }
        }
    }
    wg_sums[lane] = sum;
    // wg_sums is visible
    workgroupBarrier();
    if (lane < COLUMNS && column < params.num_columns) {
        var total = 0.0;
        for (var share = 0u; share < SHARES; share++) {
            total += wg_sums[share * COLUMNS + lane];
        }
        let at = params.output_first + column;
        if (ACCUMULATE) {
            total += output[at];
        }
        output[at] = total;
    }
}
