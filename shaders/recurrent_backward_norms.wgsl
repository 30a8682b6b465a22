// recurrent_backward_norms: the norm of the gradient that reaches the hidden states of each step.
//
// output[step] = sqrt(sum over the rows and columns of a[step, row, column]^2)
//
// Layout      a [num_steps, num_rows, num_columns], rows a_row elements apart; output [num_steps]
// Grid        one workgroup per step, folded to two dimensions
// Workgroup   64 invocations; each takes every 64th element
// Memory      wg_norms: the pair (see norm_pair.wgsl) of each invocation
// Holds       any sizes
// Precision   f32; the 64 shares are added in order
// Parts       common.wgsl, norm_pair.wgsl

struct Params {
    num_steps: u32,
    num_rows: u32,
    num_columns: u32,
    a_first: u32,
    a_row: u32,
    output_first: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       a:      array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

const WORKGROUP_SIZE: u32 = 64u;

var<workgroup> wg_norms: array<vec2<f32>, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn recurrent_backward_norms(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let step = workgroup.x + workgroup.y * num_workgroups.x;
    if (step >= params.num_steps) {
        return;
    }
    var norm = vec2<f32>();
    for (var i = lane; i < params.num_rows * params.num_columns; i += WORKGROUP_SIZE) {
        let row = step * params.num_rows + i / params.num_columns;
        let x = a[params.a_first + row * params.a_row + i % params.num_columns];
        norm = joined(norm, pair_of(x));
    }
    wg_norms[lane] = norm;
    // wg_norms is visible
    workgroupBarrier();
    if (lane == 0u) {
        for (var share = 1u; share < WORKGROUP_SIZE; share++) {
            norm = joined(norm, wg_norms[share]);
        }
        output[params.output_first + step] = norm_of(norm);
    }
}
