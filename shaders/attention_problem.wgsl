// attention_problem: the parameters and the index arithmetic that all kernels of attention share.
//
// Query head h reads key/value head h / group_size. Query i may attend key j when
//     first_key(i) <= j < end_key(i)
// which holds the bounds of causal masks, windows and lengths, and where mask and bias allow it;
// see attention_scores.wgsl. A workgroup computes a tile of rows of one head, or with FOLDED of the
// rows of all heads that share a key/value head, head after head.
//
// Layout: each tensor by its strides in elements; the last axis is contiguous.
//     query        [batch, num_heads,    q_len,  HEAD_DIM]
//     key          [batch, num_kv_heads, kv_len, HEAD_DIM], or pages of it
//     value        [batch, num_kv_heads, kv_len, VALUE_DIM], or pages of it
//     output       [batch, num_heads,    q_len,  VALUE_DIM]
//     log_sum_exp  [batch, num_heads,    q_len], natural; of packed sequences [num_heads, tokens]
//     bias, mask   [batch, num_heads, q_len, kv_len], broadcast axes with stride 0
//     aux          words that attention_prepare.wgsl and attention_mask.wgsl gathered: lengths,
//                  slopes, sinks, starts of packed sequences, pages, the mask's bits and classes

struct Params {
    // of this dispatch: batch rows and heads, and the numbers of the first among all
    num_batches: u32,
    num_heads: u32,
    batch_first: u32,
    head_first: u32,
    all_heads: u32,
    // of the longest sequence
    q_len: u32,
    kv_len: u32,
    group_size: u32,
    // query tiles of one head, splits of its keys, and workgroups that have work
    num_tiles: u32,
    num_splits: u32,
    split_keys: u32,
    num_groups: u32,
    flags: u32,
    // scale * log2(e): the softmax is computed with exp2
    scale_log2: f32,
    scale: f32,
    // softcap: cap * log2(e), scale / cap
    softcap_log2: f32,
    softcap_scale: f32,
    // query i may attend keys i + lower ..= i + upper; with BOTTOM_RIGHT relative to kv_len - q_len
    offset: i32,
    upper: i32,
    lower: i32,
    dropout_threshold: u32,
    dropout_scale: f32,
    seed_low: u32,
    seed_high: u32,
    query_first: u32,
    query_batch: u32,
    query_head: u32,
    query_token: u32,
    key_first: u32,
    key_batch: u32,
    key_head: u32,
    key_token: u32,
    value_first: u32,
    value_batch: u32,
    value_head: u32,
    value_token: u32,
    output_first: u32,
    output_batch: u32,
    output_head: u32,
    output_token: u32,
    output_split: u32,
    log_sum_exp_first: u32,
    log_sum_exp_batch: u32,
    log_sum_exp_head: u32,
    log_sum_exp_split: u32,
    bias_first: u32,
    bias_batch: u32,
    bias_head: u32,
    bias_query: u32,
    bias_key: u32,
    // words of aux
    lengths_at: u32,
    query_starts_at: u32,
    key_starts_at: u32,
    query_total: u32,
    key_total: u32,
    pages_at: u32,
    pages_row: u32,
    page_size: u32,
    num_pages: u32,
    slopes_at: u32,
    sinks_at: u32,
    mask_at: u32,
    mask_batch: u32,
    mask_head: u32,
    mask_query: u32,
    classes_at: u32,
    classes_batch: u32,
    classes_head: u32,
    classes_query: u32,
    // of the backward kernels
    statistics_at: u32,
    gradient_first: u32,
    second_gradient_first: u32,
    // of attention_weights.wgsl
    chosen_head_first: u32,
    chosen_heads: u32,
    chosen_row_first: u32,
    chosen_rows: u32,
}

const HAS_LENGTHS: u32 = 1u;
const IS_PACKED: u32 = 2u;
const BOTTOM_RIGHT: u32 = 4u;
const WRITE_LOG_SUM_EXP: u32 = 8u;
const HAS_SINKS: u32 = 16u;

@group(0) @binding(0) var<uniform> params: Params;

fn has(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

// One sequence and head, and of a tile the first row and the keys that some row may attend.
struct Tile {
    start: u32,
    key_start: u32,
    key_end: u32,
    // rows of the head, or of all heads that are folded
    rows: u32,
    q_len: u32,
    kv_len: u32,
    // query i may attend keys i + lower ..= i + upper; i + offset is where the diagonal lies
    offset: i32,
    upper: i32,
    lower: i32,
    // numbers among all batch rows and query heads
    batch: u32,
    head: u32,
    split: u32,
    // elements of query row 0, key 0, value 0, ... of this head
    query: u32,
    key: u32,
    value: u32,
    output: u32,
    log_sum_exp: u32,
    bias: u32,
    // words of aux
    mask: u32,
    classes: u32,
    // number of query row 0 among the rows of all batch rows and heads
    statistics: u32,
}

// the head of its group that a row belongs to, and its query
fn head_of(tile: Tile, row: u32) -> u32 {
    if (FOLDED) {
        // rows past the last one belong to its head
        return min(row / max(tile.q_len, 1u), params.group_size - 1u);
    }
    return 0u;
}

fn query_of(tile: Tile, row: u32) -> u32 {
    if (FOLDED) {
        return row % max(tile.q_len, 1u);
    }
    return row;
}

// the first element of a query, of a key, of a value
fn query_row(tile: Tile, row: u32) -> u32 {
    let head = head_of(tile, row) * params.query_head;
    return tile.query + head + query_of(tile, row) * params.query_token;
}

// the page that holds a key; a number past the last page must not lead outside the tensor
fn page_of(tile: Tile, j: u32) -> u32 {
    let page = aux[params.pages_at + tile.batch * params.pages_row + j / params.page_size];
    return min(page, params.num_pages - 1u);
}

fn key_row(tile: Tile, j: u32) -> u32 {
    if (PAGED) {
        let row = j % params.page_size * params.key_token;
        return tile.key + page_of(tile, j) * params.key_batch + row;
    }
    return tile.key + j * params.key_token;
}

fn value_row(tile: Tile, j: u32) -> u32 {
    if (PAGED) {
        let row = j % params.page_size * params.value_token;
        return tile.value + page_of(tile, j) * params.value_batch + row;
    }
    return tile.value + j * params.value_token;
}

// A workgroup's tile and what else is counted: heads, splits and batch rows. Under a causal mask
// work differs from tile to tile: on a GPU the longest of all heads come first, or it would wait
// for those of the last head.
fn number_and_rest(group: u32) -> vec2<u32> {
    if (LONGEST_FIRST) {
        let others = params.num_groups / params.num_tiles;
        return vec2<u32>(group / others, group % others);
    }
    return vec2<u32>(group % params.num_tiles, group / params.num_tiles);
}

// the sequence and head number `head` of batch row `batch` of this dispatch, without rows or keys
fn head_tile(batch: u32, head: u32) -> Tile {
    var tile: Tile;
    tile.batch = params.batch_first + batch;
    tile.head = params.head_first + head;
    tile.q_len = params.q_len;
    tile.kv_len = params.kv_len;
    var query_start = 0u;
    var key_start = 0u;
    if (FROM_DEVICE) {
        if (has(IS_PACKED)) {
            // positions outside the tensors must not lead there
            let q = params.query_starts_at + tile.batch;
            let k = params.key_starts_at + tile.batch;
            query_start = min(aux[q], params.query_total);
            key_start = min(aux[k], params.key_total);
            let query_end = clamp(aux[q + 1u], query_start, params.query_total);
            let key_end = clamp(aux[k + 1u], key_start, params.key_total);
            tile.q_len = min(query_end - query_start, params.q_len);
            tile.kv_len = min(key_end - key_start, params.kv_len);
        }
        if (has(HAS_LENGTHS)) {
            tile.kv_len = min(tile.kv_len, aux[params.lengths_at + tile.batch]);
        }
    }
    tile.rows = tile.q_len * select(1u, params.group_size, FOLDED);
    tile.offset = params.offset;
    tile.upper = params.upper;
    tile.lower = params.lower;
    if (has(BOTTOM_RIGHT)) {
        tile.offset = i32(tile.kv_len) - i32(tile.q_len);
        tile.upper += tile.offset;
        tile.lower += tile.offset;
    }
    let kv_head = head / params.group_size;
    // pages are not the batch row's own
    let kv_batch = select(batch, 0u, PAGED);
    tile.query = params.query_first + batch * params.query_batch + head * params.query_head
        + query_start * params.query_token;
    tile.key = params.key_first + kv_batch * params.key_batch + kv_head * params.key_head
        + key_start * params.key_token;
    tile.value = params.value_first + kv_batch * params.value_batch
        + kv_head * params.value_head + key_start * params.value_token;
    tile.output = params.output_first + batch * params.output_batch + head * params.output_head
        + query_start * params.output_token;
    tile.log_sum_exp = params.log_sum_exp_first + batch * params.log_sum_exp_batch
        + head * params.log_sum_exp_head + query_start;
    tile.bias = params.bias_first + batch * params.bias_batch + head * params.bias_head;
    tile.mask = params.mask_at + tile.batch * params.mask_batch + tile.head * params.mask_head;
    tile.classes = params.classes_at + tile.batch * params.classes_batch
        + tile.head * params.classes_head;
    tile.statistics = tile.batch * params.log_sum_exp_batch
        + tile.head * params.log_sum_exp_head + query_start;
    return tile;
}
