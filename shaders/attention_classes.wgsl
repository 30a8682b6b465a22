// attention_classes: of each block of a mask whether it allows none of its pairs, some, or all, so
// that the attention kernels can skip the first kind and need not look at the last.
//
// Layout      aux: the bits [heads, q_len, row_words] of attention_mask.wgsl, q_len 1 if the mask
//             is the same for all queries; classes [heads, row_blocks, key_blocks]
// Grid        one invocation per block, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       CLASS_KEYS divides 32 or is a multiple of it
// Precision   exact
// Parts       common.wgsl

struct Params {
    kv_len: u32,
    q_len: u32,
    row_words: u32,
    row_blocks: u32,
    key_blocks: u32,
    num_blocks: u32,
    mask_at: u32,
    classes_at: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read_write> aux:    array<u32>;

@compute @workgroup_size(64)
fn attention_classes(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let index = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (index >= params.num_blocks) {
        return;
    }
    let key_start = index % params.key_blocks * CLASS_KEYS;
    let key_end = min(key_start + CLASS_KEYS, params.kv_len);
    let row_start = index / params.key_blocks % params.row_blocks * CLASS_ROWS;
    let row_end = min(row_start + CLASS_ROWS, params.q_len);
    let head = index / params.key_blocks / params.row_blocks;
    var some = false;
    var all = true;
    for (var row = row_start; row < row_end; row++) {
        let first = params.mask_at + (head * params.q_len + row) * params.row_words;
        for (var j = key_start; j < key_end; j = (j / 32u + 1u) * 32u) {
            // the bits of this block in the word of key j
            var bits = 0xffffffffu << (j % 32u);
            let end = key_end - j / 32u * 32u;
            if (end < 32u) {
                bits &= (1u << end) - 1u;
            }
            let own = aux[first + j / 32u] & bits;
            some = some || own != 0u;
            all = all && own == bits;
        }
    }
    aux[params.classes_at + index] = select(select(0u, 1u, some), 2u, all);
}
