// attention_scores: from the product of a query and a key to their score, in log2 units, four pairs
// at a time.
//     s = scale * product;  s = cap * tanh(s / cap) with SOFTCAP;
//     s -= slope * |i + offset - j| with ALIBI;  s += bias with BIAS;
//     MASKED where query i may not attend key j
// Source: softcap: Gemma 2; ALiBi: Press et al. 2022, symmetric as in FlashAttention.

// classes of a block of the mask: no pair allowed, some, all; and of a block whose pairs are all
// allowed, whatever else there is to mask
const CLASS_NONE: u32 = 0u;
const CLASS_SOME: u32 = 1u;
const CLASS_ALL: u32 = 2u;
const CLASS_INSIDE: u32 = 3u;

struct Pairs {
    // rows of the tile and keys; past the end of either is fine
    row: vec4<u32>,
    key: vec4<u32>,
}

// keys first_key(i) .. end_key(i) may be attended by query i
fn first_key(tile: Tile, i: u32) -> u32 {
    if (!BOUNDED_BELOW) {
        return 0u;
    }
    return u32(clamp(i32(i) + tile.lower, 0, i32(tile.kv_len)));
}

fn end_key(tile: Tile, i: u32) -> u32 {
    if (!BOUNDED_ABOVE) {
        return tile.kv_len;
    }
    return u32(clamp(i32(i) + tile.upper + 1, 0, i32(tile.kv_len)));
}

fn tanh_of(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        tanh_bounded(x.x), tanh_bounded(x.y), tanh_bounded(x.z), tanh_bounded(x.w),
    );
}

// the class of the mask's block that begins at this tile's first row and a key
fn block_class(tile: Tile, key_start: u32) -> u32 {
    if (CLASSES) {
        let row = tile.classes + tile.start / CLASS_ROWS * params.classes_query;
        return aux[row + key_start / CLASS_KEYS];
    }
    return CLASS_SOME;
}

fn is_masked(tile: Tile, row: u32, key: u32) -> bool {
    let i = min(query_of(tile, row), params.q_len - 1u);
    let first = tile.mask + head_of(tile, row) * params.mask_head + i * params.mask_query;
    let j = min(key, params.kv_len - 1u);
    return ((aux[first + j / 32u] >> (j % 32u)) & 1u) == 0u;
}

// a bias of -1e30 or less, -infinity too: looked at as an integer, since WGSL may take infinity
// for impossible
fn is_masking(bits: u32) -> bool {
    return bits >= 0xf149f2cau && bits <= 0xff800000u;
}

// the bits of an f32
fn bias_bits(tile: Tile, row: u32, key: u32) -> u32 {
    let i = min(query_of(tile, row), params.q_len - 1u);
    let j = min(key, params.kv_len - 1u);
    let first = tile.bias + head_of(tile, row) * params.bias_head;
    let at = first + i * params.bias_query + j * params.bias_key;
    if (BIAS_BF16) {
        return ((bias[at / 2u] >> (at % 2u * 16u)) & 0xffffu) << 16u;
    }
    if (BIAS_F16) {
        let half = (bias[at / 2u] >> (at % 2u * 16u)) & 0xffffu;
        // an infinity of f16 must come out as one of f32, whatever the device makes of it
        if ((half & 0x7fffu) == 0x7c00u) {
            return ((half & 0x8000u) << 16u) | 0x7f800000u;
        }
        return bitcast<u32>(unpack2x16float(half).x);
    }
    return bias[at];
}

fn slope_of(tile: Tile, row: u32) -> f32 {
    return bitcast<f32>(aux[params.slopes_at + tile.head + head_of(tile, row)]);
}

fn sink_of(tile: Tile, row: u32) -> f32 {
    return bitcast<f32>(aux[params.sinks_at + tile.head + head_of(tile, row)]);
}

// block: the class of the block that the pairs lie in
fn scores(tile: Tile, pairs: Pairs, product: vec4<f32>, block: u32) -> vec4<f32> {
    var score = product * params.scale_log2;
    if (SOFTCAP) {
        score = params.softcap_log2 * tanh_of(product * params.softcap_scale);
    }
    if (ALIBI) {
        // unroll
        for (var e = 0u; e < 4u; e++) {
            let row = pairs.row[e];
            let distance = i32(query_of(tile, row)) + tile.offset - i32(pairs.key[e]);
            score[e] -= LOG2_E * slope_of(tile, row) * abs(f32(distance));
        }
    }
    if (block == CLASS_INSIDE) {
        return score;
    }
    var allowed = pairs.key < vec4<u32>(tile.key_end);
    // unroll
    for (var e = 0u; e < 4u; e++) {
        let row = pairs.row[e];
        let key = pairs.key[e];
        if (BOUNDED_ABOVE) {
            allowed[e] = allowed[e] && key < end_key(tile, query_of(tile, row));
        }
        if (BOUNDED_BELOW) {
            allowed[e] = allowed[e] && key >= first_key(tile, query_of(tile, row));
        }
        if (BIAS) {
            let bits = bias_bits(tile, row, key);
            let masking = is_masking(bits);
            allowed[e] = allowed[e] && !masking;
            score[e] += LOG2_E * bitcast<f32>(select(bits, 0u, masking));
        }
        if (MASK) {
            allowed[e] = allowed[e] && (block == CLASS_ALL || !is_masked(tile, row, key));
        }
    }
    return select(vec4<f32>(MASKED), score, allowed);
}

// of each component: a score of a pair that may attend, be it NaN. As integers: a comparison with
// NaN may be taken for impossible
fn is_unmasked(score: vec4<f32>) -> vec4<bool> {
    return bitcast<vec4<u32>>(score) != vec4<u32>(MASKED_BITS);
}

// of each component: neither NaN nor infinite
fn is_finite(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u);
}

fn is_nonfinite(x: vec4<f32>) -> bool {
    return !all(is_finite(x));
}

// which of a row's keys 4 k .. 4 k + 3 dropout keeps; src/reference/attention.rs has the same
fn kept(tile: Tile, row: u32, k: u32) -> vec4<bool> {
    let head = tile.batch * params.all_heads + tile.head + head_of(tile, row);
    let counter = vec4<u32>(k, query_of(tile, row), head, 0u);
    let noise = philox(counter, vec2<u32>(params.seed_low, params.seed_high));
    return noise >= vec4<u32>(params.dropout_threshold);
}
