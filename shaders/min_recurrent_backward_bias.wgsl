// min_recurrent_backward_bias: sums of columns, in an order that the numbers of rows fixes.
//     output[c] = sum over rows of input[row, c], or += with ACCUMULATE
// Launched twice: sums of blocks of rows, then of these.
//
// Layout      input    [rows, columns]
//             output   [ceil(rows / block), columns]
// Grid        one invocation per column and block, folded to two dimensions
// Workgroup   64 invocations; neighbours have neighbouring columns
// Memory      none
// Holds       any rows and columns
// Precision   f32
// Parts       none

struct Params {
    rows: u32,
    columns: u32,
    block: u32,
    num_blocks: u32,
    input_first: u32,
    output_first: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       input:  array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(64)
fn min_recurrent_backward_bias(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let id = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + index;
    let column = id % params.columns;
    let block = id / params.columns;
    if (block >= params.num_blocks) {
        return;
    }
    let end = min((block + 1u) * params.block, params.rows);
    var sum = 0.0;
    for (var row = block * params.block; row < end; row++) {
        sum += input[params.input_first + row * params.columns + column];
    }
    let at = params.output_first + block * params.columns + column;
    if (ACCUMULATE) {
        sum += output[at];
    }
    output[at] = sum;
}
