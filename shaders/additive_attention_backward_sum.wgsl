// additive_attention_backward_sum: sums of rows, block by block, in increasing order: twice in a
// row they make grad_v of what the lanes of additive_attention_backward have left.
//
// Layout (row-major)
//     terms  [num_rows, dim]
//     sums   [ceil(num_rows / rows_each), dim]
// Grid        one invocation per element of sums, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       nothing else
// Precision   f32; with `accumulate`, added to what sums holds
// Parts       common.wgsl

struct Params {
    dim: u32,
    num_rows: u32,
    rows_each: u32,
    num_items: u32,
    accumulate: u32,
    terms_first: u32,
    sums_first: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       terms:  array<f32>;
@group(0) @binding(2) var<storage, read_write> sums:   array<f32>;

@compute @workgroup_size(64)
fn additive_attention_backward_sum(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let item = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (item >= params.num_items) {
        return;
    }
    let d = item % params.dim;
    let first = item / params.dim * params.rows_each;
    let end = min(first + params.rows_each, params.num_rows);
    var sum = 0.0;
    for (var row = first; row < end; row++) {
        sum += terms[params.terms_first + row * params.dim + d];
    }
    if (params.accumulate != 0u) {
        sum += sums[params.sums_first + item];
    }
    sums[params.sums_first + item] = sum;
}
