// attention_backward_statistics: what the gradients of a query row need of its forward pass.
//     delta_i = dot(grad_output_i, output_i)
// beside log_sum_exp_i in log2 units. A row that attends nothing gets EMPTY, under which every
// weight exp2(score - EMPTY) is 0.
// Source: Dao et al. 2022 (FlashAttention), appendix B.2.
//
// Layout      see attention_problem.wgsl; aux: from statistics_at on two words per row, in the
//             order of log_sum_exp
// Grid        one invocation per row of a head, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any sizes
// Precision   f32
// Parts       common.wgsl, attention_problem.wgsl

@group(0) @binding(1) var<storage, read>       output:      array<f32>;
@group(0) @binding(2) var<storage, read>       grad_output: array<f32>;
@group(0) @binding(3) var<storage, read>       log_sum_exp: array<u32>;
@group(0) @binding(4) var<storage, read_write> aux:         array<u32>;

const EMPTY: f32 = 1e37;

@compute @workgroup_size(64)
fn attention_backward_statistics(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let head = group / params.num_tiles % params.num_heads;
    let tile = head_tile(group / params.num_tiles / params.num_heads, head);
    let row = group % params.num_tiles * 64u + lane;
    if (row >= tile.rows) {
        return;
    }
    let first = tile.output + row * params.output_token;
    var delta = 0.0;
    for (var d = 0u; d < VALUE_DIM; d++) {
        delta += grad_output[first + d] * output[first + d];
    }
    let bits = log_sum_exp[tile.log_sum_exp + row];
    let scaled = select(LOG2_E * bitcast<f32>(bits), EMPTY, bits == NEGATIVE_INFINITY_BITS);
    let at = params.statistics_at + 2u * (tile.statistics + row);
    aux[at] = bitcast<u32>(scaled);
    aux[at + 1u] = bitcast<u32>(delta);
}
