// additive_attention_backward_problem: the bindings and parameters of both roles of
// additive_attention_backward.
//
// Layout (row-major, last axis contiguous)
//     query        [batch, q_len,  dim]        Word: f32, or halves two to a word
//     key          [batch, kv_len, dim]        Word
//     value        [batch, kv_len, value_dim]  Word
//     grad_output  [batch, q_len,  value_dim]
//     mask         a byte per element; strides in bytes, 0 along an axis that is broadcast
//     prepared     see additive_attention_backward_prepare.wgsl
//     grad_terms   that of the rows: grad_query or grad_key
//     grad_second  queries as rows: this lane's part of grad_v [num_lanes, dim]
//                  keys as rows: grad_value [batch, kv_len, value_dim]

struct Params {
    dim: u32,
    value_dim: u32,
    q_len: u32,
    kv_len: u32,
    // row tiles of one batch row, and workgroups that have work
    num_tiles: u32,
    num_groups: u32,
    query_first: u32,
    key_first: u32,
    value_first: u32,
    grad_output_first: u32,
    mask_first: u32,
    mask_batch: u32,
    mask_row: u32,
    mask_column: u32,
    // where v and the lengths begin in prepared
    prepared_v: u32,
    prepared_lengths: u32,
    grad_terms_first: u32,
    grad_second_first: u32,
}

@group(0) @binding(0) var<uniform>             params:      Params;
@group(0) @binding(1) var<storage, read>       query:       array<Word>;
@group(0) @binding(2) var<storage, read>       key:         array<Word>;
@group(0) @binding(3) var<storage, read>       value:       array<Word>;
@group(0) @binding(4) var<storage, read>       grad_output: array<f32>;
@group(0) @binding(5) var<storage, read>       mask:        array<u32>;
@group(0) @binding(6) var<storage, read>       prepared:    array<u32>;
@group(0) @binding(7) var<storage, read_write> grad_terms:  array<f32>;
@group(0) @binding(8) var<storage, read_write> grad_second: array<f32>;

// what a query row needs to know of its softmax, in log2 units
struct Statistics {
    log_sum: Rows,
    delta: Rows,
}

fn v_at(d: u32) -> f32 {
    return bitcast<f32>(prepared[params.prepared_v + d]);
}

// what bounds a loop with barriers must be the same for all invocations, and visibly so
var<workgroup> wg_keys: u32;

fn keys_of(lane: Lane, batch: u32) -> u32 {
    if (lane.index == 0u) {
        wg_keys = prepared[params.prepared_lengths + batch];
    }
    return workgroupUniformLoad(&wg_keys);
}

fn log_sum_of_query(tile: Tile, i: u32) -> f32 {
    return bitcast<f32>(prepared[2u * (tile.batch * params.q_len + i)]);
}

fn delta_of_query(tile: Tile, i: u32) -> f32 {
    return bitcast<f32>(prepared[2u * (tile.batch * params.q_len + i) + 1u]);
}

// whether row and column are both there and the mask lets them meet
fn is_allowed(tile: Tile, row: u32, column: u32) -> bool {
    let inside = row < tile.row_limit && column < tile.column_end;
    if (!HAS_MASK) {
        return inside;
    }
    let at = params.mask_first + tile.batch * params.mask_batch
        + min(row, tile.row_end - 1u) * params.mask_row
        + min(column, tile.column_end - 1u) * params.mask_column;
    let byte = (mask[at >> 2u] >> (8u * (at & 3u))) & 0xffu;
    return inside && byte != 0u;
}
