// attention_append_lengths: how many tokens a cache holds, after attention_append.wgsl.
//     length_b = min(length_b + new_tokens, capacity)
//
// Layout      lengths [batch]
// Grid        one invocation per batch row
// Workgroup   64 invocations
// Memory      none
// Holds       nothing else
// Precision   exact
// Parts       common.wgsl

struct Params {
    batch: u32,
    new_tokens: u32,
    capacity: u32,
}

@group(0) @binding(0) var<uniform>             params:  Params;
@group(0) @binding(1) var<storage, read_write> lengths: array<u32>;

@compute @workgroup_size(64)
fn attention_append_lengths(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < params.batch) {
        let length = min(lengths[id.x], params.capacity);
        lengths[id.x] = length + min(params.new_tokens, params.capacity - length);
    }
}
