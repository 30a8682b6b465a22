// attention_backward_sinks: the gradient of each head's sink.
//     grad_sink = -sum_i exp(sink - log_sum_exp_i) delta_i    over the rows of all batch rows
//
// Layout      see attention_problem.wgsl; gradient [num_heads]
// Grid        one workgroup per head, folded to two dimensions
// Workgroup   64 invocations; invocation i takes rows i, i + 64, ...
// Memory      wg_sums: one sum per invocation
// Holds       any sizes
// Precision   f32; each sum in one order
// Parts       common.wgsl, attention_problem.wgsl

@group(0) @binding(1) var<storage, read>       aux:      array<u32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

var<workgroup> wg_sums: array<f32, 64>;

@compute @workgroup_size(64)
fn attention_backward_sinks(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let head = workgroup.x + workgroup.y * num_workgroups.x;
    if (head >= params.num_groups) {
        return;
    }
    let sink = LOG2_E * bitcast<f32>(aux[params.sinks_at + head]);
    var sum = 0.0;
    for (var batch = 0u; batch < params.num_batches; batch++) {
        let tile = head_tile(batch, head);
        for (var row = lane; row < tile.rows; row += 64u) {
            let at = params.statistics_at + 2u * (tile.statistics + row);
            sum -= exp2(sink - bitcast<f32>(aux[at])) * bitcast<f32>(aux[at + 1u]);
        }
    }
    wg_sums[lane] = sum;
    // wg_sums is visible
    workgroupBarrier();
    if (lane == 0u) {
        var total = 0.0;
        for (var i = 0u; i < 64u; i++) {
            total += wg_sums[i];
        }
        gradient[head] = total;
    }
}
