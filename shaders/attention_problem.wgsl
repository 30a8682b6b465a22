// attention_problem: the bindings, parameters and index arithmetic that all forward kernels of
// attention share.
//
// Scores are scale * dot(query_i, key_j). With CAUSAL, query i may attend key j when
// j <= i + offset. Query head h reads key/value head h / group_size. A row that may attend nothing
// gives output 0 and log_sum_exp -infinity.
//
// Layout: each tensor by its strides in elements; the last axis is contiguous.
//     query        [batch, num_heads,    q_len,  HEAD_DIM]
//     key          [batch, num_kv_heads, kv_len, HEAD_DIM]
//     value        [batch, num_kv_heads, kv_len, VALUE_DIM]
//     output       [batch, num_heads,    q_len,  VALUE_DIM]
//     log_sum_exp  [batch, num_heads,    q_len]              contiguous; natural logarithm

struct Params {
    q_len: u32,
    kv_len: u32,
    num_heads: u32,
    group_size: u32,
    // query tiles of one head, and workgroups that have work
    num_tiles: u32,
    num_groups: u32,
    // scale * log2(e): the softmax is computed with exp2
    scale_log2: f32,
    offset: i32,
    write_log_sum_exp: u32,
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
    log_sum_exp_first: u32,
}

@group(0) @binding(0) var<uniform>             params:      Params;
@group(0) @binding(1) var<storage, read>       query:       array<f32>;
@group(0) @binding(2) var<storage, read>       key:         array<f32>;
@group(0) @binding(3) var<storage, read>       value:       array<f32>;
@group(0) @binding(4) var<storage, read_write> output:      array<f32>;
@group(0) @binding(5) var<storage, read_write> log_sum_exp: array<u32>;

// One workgroup's share: QUERY_TILE rows of one head of one batch row.
struct Tile {
    // first query row
    query_start: u32,
    // keys that some row of the tile may attend: 0..key_end
    key_end: u32,
    // element of query row 0, key 0, value 0, output row 0, log_sum_exp row 0 of this head
    query: u32,
    key: u32,
    value: u32,
    output: u32,
    log_sum_exp: u32,
}

// keys 0..keys_of(row) may be attended by a row
fn keys_of(row: u32) -> u32 {
    if (!CAUSAL) {
        return params.kv_len;
    }
    return u32(clamp(i32(row) + params.offset + 1, 0, i32(params.kv_len)));
}

fn tile_of(group: u32) -> Tile {
    // the last tiles have the most keys under a causal mask: they start first
    let tile = params.num_tiles - 1u - group % params.num_tiles;
    let head = group / params.num_tiles % params.num_heads;
    let batch = group / params.num_tiles / params.num_heads;
    let kv_head = head / params.group_size;
    let query_start = tile * QUERY_TILE;
    let last_row = min(query_start + QUERY_TILE, params.q_len) - 1u;
    return Tile(
        query_start,
        keys_of(last_row),
        params.query_first + batch * params.query_batch + head * params.query_head,
        params.key_first + batch * params.key_batch + kv_head * params.key_head,
        params.value_first + batch * params.value_batch + kv_head * params.value_head,
        params.output_first + batch * params.output_batch + head * params.output_head,
        params.log_sum_exp_first + (batch * params.num_heads + head) * params.q_len,
    );
}

// the maximum is in log2 units
fn log_sum_exp_bits(maximum: f32, sum: f32) -> u32 {
    if (sum == 0.0) {
        return NEGATIVE_INFINITY_BITS;
    }
    return bitcast<u32>((maximum + log2(sum)) * LN_2);
}

// elements d .. d + 3 of the query row at `first`; 0 past HEAD_DIM. Likewise below
fn query_vector(first: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>();
    // unroll
    for (var c = 0u; c < 4u; c++) {
        if (d + c < HEAD_DIM) {
            x[c] = query[first + d + c];
        }
    }
    return x;
}

fn key_vector(first: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>();
    // unroll
    for (var c = 0u; c < 4u; c++) {
        if (d + c < HEAD_DIM) {
            x[c] = key[first + d + c];
        }
    }
    return x;
}

fn value_vector(first: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>();
    // unroll
    for (var c = 0u; c < 4u; c++) {
        if (d + c < VALUE_DIM) {
            x[c] = value[first + d + c];
        }
    }
    return x;
}

fn is_nonfinite(x: vec4<f32>) -> bool {
    return any((bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
}
