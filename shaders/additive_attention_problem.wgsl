// additive_attention_problem: the bindings, parameters and masks of the kernels that run forward.
//
// Rows are queries, columns keys. Row i of batch row b may attend key j when j < kv_lengths[b]
// (has_lengths) and mask[b, i, j] is not 0 (HAS_MASK).
//
// Layout (row-major, last axis contiguous)
//     query        [batch, q_len,  dim]        Word: f32, or halves two to a word
//     key          [batch, kv_len, dim]        Word
//     value        [batch, kv_len, value_dim]  Word
//     v            [dim]
//     mask         a byte per element; strides in bytes, 0 along an axis that is broadcast
//     kv_lengths   [batch]
//     result       the output [batch, q_len, value_dim] or the weights [batch, q_len, kv_len]
//     log_sum_exp  [batch, q_len]              natural logarithm; bits, for -infinity

struct Params {
    dim: u32,
    value_dim: u32,
    q_len: u32,
    kv_len: u32,
    // row tiles of one batch row, and workgroups that have work
    num_tiles: u32,
    num_groups: u32,
    has_lengths: u32,
    write_log_sum_exp: u32,
    query_first: u32,
    key_first: u32,
    value_first: u32,
    mask_first: u32,
    mask_batch: u32,
    mask_row: u32,
    mask_column: u32,
    kv_lengths_first: u32,
    result_first: u32,
    log_sum_exp_first: u32,
}

@group(0) @binding(0) var<uniform>             params:      Params;
@group(0) @binding(1) var<storage, read>       query:       array<Word>;
@group(0) @binding(2) var<storage, read>       key:         array<Word>;
@group(0) @binding(3) var<storage, read>       value:       array<Word>;
@group(0) @binding(4) var<storage, read>       v:           array<f32>;
@group(0) @binding(5) var<storage, read>       mask:        array<u32>;
@group(0) @binding(6) var<storage, read>       kv_lengths:  array<i32>;
@group(0) @binding(7) var<storage, read_write> result:      array<f32>;
@group(0) @binding(8) var<storage, read_write> log_sum_exp: array<u32>;

fn row_term(i: u32) -> f32 {
    return element(query[word_of(i)], i);
}

fn column_term(i: u32) -> f32 {
    return element(key[word_of(i)], i);
}

fn column_value(i: u32) -> f32 {
    return element(value[word_of(i)], i);
}

fn v_at(d: u32) -> f32 {
    return v[d];
}

fn is_allowed(tile: Tile, row: u32, column: u32) -> bool {
    if (!HAS_MASK) {
        return column < tile.column_end;
    }
    let at = params.mask_first + tile.batch * params.mask_batch + row * params.mask_row
        + min(column, tile.column_end - 1u) * params.mask_column;
    let byte = (mask[at >> 2u] >> (8u * (at & 3u))) & 0xffu;
    return column < tile.column_end && byte != 0u;
}

// what bounds a loop with barriers must be the same for all invocations, and visibly so
var<workgroup> wg_keys: u32;

fn tile_of(lane: Lane, group: u32) -> Tile {
    let batch = group / params.num_tiles;
    var keys = params.kv_len;
    if (params.has_lengths != 0u) {
        if (lane.index == 0u) {
            let len = kv_lengths[params.kv_lengths_first + batch];
            wg_keys = u32(clamp(len, 0, i32(params.kv_len)));
        }
        keys = workgroupUniformLoad(&wg_keys);
    }
    return Tile(
        batch,
        group % params.num_tiles * (WORKGROUP_SIZE * ROWS_PER_LANE),
        params.q_len,
        params.q_len,
        keys,
        params.query_first + batch * params.q_len * params.dim,
        params.key_first + batch * params.kv_len * params.dim,
        0u,
        params.value_first + batch * params.kv_len * params.value_dim,
    );
}
