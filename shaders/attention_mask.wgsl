// attention_mask: a boolean mask, a byte per element, as bits: 32 keys to a word, the first in the
// lowest bit. Bits past the last key are 1.
//
// Layout      mask [rows, kv_len] bytes, not 0 = may attend, or [rows, 1]; aux [rows, words]
// Grid        one invocation per word, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       KEYS_BROADCAST: the mask has one byte per row
// Precision   exact
// Parts       common.wgsl

struct Params {
    kv_len: u32,
    row_words: u32,
    num_words: u32,
    mask_at: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       mask:   array<u32>;
@group(0) @binding(2) var<storage, read_write> aux:    array<u32>;

fn is_set(i: u32) -> bool {
    return ((mask[i / 4u] >> (i % 4u * 8u)) & 0xffu) != 0u;
}

@compute @workgroup_size(64)
fn attention_mask(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let word = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (word >= params.num_words) {
        return;
    }
    let row = word / params.row_words;
    let key_start = word % params.row_words * 32u;
    var bits = 0xffffffffu;
    if (KEYS_BROADCAST) {
        bits = select(0u, bits, is_set(row));
    } else {
        for (var j = 0u; j < min(32u, params.kv_len - key_start); j++) {
            if (!is_set(row * params.kv_len + key_start + j)) {
                bits ^= 1u << j;
            }
        }
    }
    aux[params.mask_at + word] = bits;
}
