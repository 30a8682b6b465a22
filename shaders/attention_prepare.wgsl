// attention_prepare: gathers the small tensors of a call in aux, so that the kernels bind one
// buffer for all of them.
//
// Layout      kv_lengths [batch], cu_seqlens_q and cu_seqlens_k [batch + 1], block_table
//             [batch, max_blocks], alibi_slopes and sinks [num_heads], words all of them; aux has
//             each of them at its own place
// Grid        one invocation per word of the longest
// Workgroup   64 invocations
// Memory      none
// Holds       a tensor that is not given has length 0
// Precision   exact
// Parts       common.wgsl

struct Params {
    lengths_len: u32,
    lengths_at: u32,
    starts_len: u32,
    query_starts_at: u32,
    key_starts_at: u32,
    pages_len: u32,
    pages_at: u32,
    slopes_len: u32,
    slopes_at: u32,
    sinks_len: u32,
    sinks_at: u32,
}

@group(0) @binding(0) var<uniform>             params:       Params;
@group(0) @binding(1) var<storage, read>       kv_lengths:   array<u32>;
@group(0) @binding(2) var<storage, read>       cu_seqlens_q: array<u32>;
@group(0) @binding(3) var<storage, read>       cu_seqlens_k: array<u32>;
@group(0) @binding(4) var<storage, read>       block_table:  array<u32>;
@group(0) @binding(5) var<storage, read>       alibi_slopes: array<u32>;
@group(0) @binding(6) var<storage, read>       sinks:        array<u32>;
@group(0) @binding(7) var<storage, read_write> aux:          array<u32>;

@compute @workgroup_size(64)
fn attention_prepare(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if (i < params.lengths_len) {
        aux[params.lengths_at + i] = kv_lengths[i];
    }
    if (i < params.starts_len) {
        aux[params.query_starts_at + i] = cu_seqlens_q[i];
        aux[params.key_starts_at + i] = cu_seqlens_k[i];
    }
    if (i < params.pages_len) {
        aux[params.pages_at + i] = block_table[i];
    }
    if (i < params.slopes_len) {
        aux[params.slopes_at + i] = alibi_slopes[i];
    }
    if (i < params.sinks_len) {
        aux[params.sinks_at + i] = sinks[i];
    }
}
