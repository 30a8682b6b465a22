// attention_append: the keys or the values of new tokens, written behind those that a cache holds.
//     cache[b, h, length_b + t] = tokens[b, h, t]
// A token for which the row has no room left is dropped.
//
// Layout      tokens by their strides, in words; cache by its strides, in words: of batch rows, or
//             (PAGED) of pages, which pages names; lengths [batch], before the new tokens
// Grid        one invocation per word of the cache that is written, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       a token of one head is `words` whole words of the cache; CONVERT is 0 where tokens
//             are stored as the cache is, 1 from f32 to f16, 2 from f32 to bf16
// Precision   exact, or rounded to nearest, ties to even
// Parts       common.wgsl

struct Params {
    num_words: u32,
    words: u32,
    num_heads: u32,
    new_tokens: u32,
    capacity: u32,
    tokens_batch: u32,
    tokens_head: u32,
    tokens_token: u32,
    cache_batch: u32,
    cache_head: u32,
    cache_token: u32,
    page_size: u32,
    num_pages: u32,
    pages_row: u32,
}

@group(0) @binding(0) var<uniform>             params:  Params;
@group(0) @binding(1) var<storage, read>       tokens:  array<u32>;
@group(0) @binding(2) var<storage, read>       lengths: array<u32>;
@group(0) @binding(3) var<storage, read>       pages:   array<u32>;
@group(0) @binding(4) var<storage, read_write> cache:   array<u32>;

fn bf16_bits(bits: u32) -> u32 {
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn word_of_tokens(first: u32, w: u32) -> u32 {
    if (CONVERT == 0u) {
        return tokens[first + w];
    }
    let low = tokens[first + 2u * w];
    let high = tokens[first + 2u * w + 1u];
    if (CONVERT == 1u) {
        return pack2x16float(vec2<f32>(bitcast<f32>(low), bitcast<f32>(high)));
    }
    return bf16_bits(low) | (bf16_bits(high) << 16u);
}

@compute @workgroup_size(64)
fn attention_append(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let index = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (index >= params.num_words) {
        return;
    }
    let w = index % params.words;
    let row = index / params.words;
    let t = row % params.new_tokens;
    let head = row / params.new_tokens % params.num_heads;
    let batch = row / params.new_tokens / params.num_heads;
    let length = min(lengths[batch], params.capacity);
    if (t >= params.capacity - length) {
        return;
    }
    var block = batch;
    var position = length + t;
    if (PAGED) {
        block = pages[batch * params.pages_row + position / params.page_size];
        position = position % params.page_size;
        if (block >= params.num_pages) {
            return;
        }
    }
    let first = batch * params.tokens_batch + head * params.tokens_head + t * params.tokens_token;
    let at = block * params.cache_batch + head * params.cache_head + position * params.cache_token;
    cache[at + w] = word_of_tokens(first, w);
}
