// attention_backward_bindings: the tensors of the backward kernels, and what they share. Gradients
// have the strides of the tensors that they belong to.

@group(0) @binding(1) var<storage, read>       query:           array<Word>;
@group(0) @binding(2) var<storage, read>       key:             array<Word>;
@group(0) @binding(3) var<storage, read>       value:           array<Word>;
@group(0) @binding(4) var<storage, read>       bias:            array<u32>;
@group(0) @binding(5) var<storage, read>       aux:             array<u32>;
@group(0) @binding(6) var<storage, read>       grad_output:     array<GradientWord>;
@group(0) @binding(7) var<storage, read_write> gradient:        array<f32>;
@group(0) @binding(8) var<storage, read_write> second_gradient: array<f32>;

fn grad_output_vector(first: u32, d: u32) -> vec4<f32> {
    if (ALIGNED) {
        if (d >= VALUE_DIM) {
            return vec4<f32>();
        }
        return grad_output[(first + d) / 4u];
    } else {
        var x = vec4<f32>();
        // unroll
        for (var c = 0u; c < 4u; c++) {
            if (d + c < VALUE_DIM) {
                x[c] = grad_output[first + d + c];
            }
        }
        return x;
    }
}

// The rows of a workgroup; of keys, with all heads that share them.
struct Place {
    batch: u32,
    head: u32,
    num_heads: u32,
    row_start: u32,
}

fn place_of(group: u32) -> Place {
    let counted = number_and_rest(group);
    // of keys the first tiles have the most queries under a causal mask, of queries the last
    var number = counted.x;
    if (!ROWS_ARE_KEYS) {
        number = params.num_tiles - 1u - number;
    }
    let num_heads = select(1u, params.group_size, ROWS_ARE_KEYS);
    let groups = params.num_heads / num_heads;
    let rest = counted.y;
    return Place(rest / groups, rest % groups * num_heads, num_heads, number * ROW_TILE);
}

fn grad_output_row(tile: Tile, row: u32) -> u32 {
    return tile.output + row * params.output_token;
}

// log_sum_exp in log2 units and delta of a row; see attention_backward_statistics.wgsl
fn statistics(tile: Tile, row: u32) -> vec2<f32> {
    let at = params.statistics_at + 2u * (tile.statistics + min(row, max(tile.rows, 1u) - 1u));
    return vec2<f32>(bitcast<f32>(aux[at]), bitcast<f32>(aux[at + 1u]));
}

// Of four pairs: the weights that the values see, and the gradients of the scores and products.
struct PairGradients {
    weight: vec4<f32>,
    score: vec4<f32>,
    product: vec4<f32>,
}

// product: query . key; grad_weight: grad_output . value; keep: what dropout keeps; block: the
// class of the pairs
//     p = exp(s - log_sum_exp);  ds = p (keep dp - delta);  d product = scale ds (1 - tanh^2)
fn pair_gradients(
    tile: Tile,
    pairs: Pairs,
    product: vec4<f32>,
    grad_weight: vec4<f32>,
    log_sum_exp: vec4<f32>,
    delta: vec4<f32>,
    keep: vec4<bool>,
    block: u32,
) -> PairGradients {
    let score = scores(tile, pairs, product, block);
    let real = is_unmasked(score) & (pairs.row < vec4<u32>(tile.rows));
    let p = select(vec4<f32>(), exp2(score - log_sum_exp), real);
    var weight = p;
    var dp = grad_weight;
    if (DROPOUT) {
        weight = select(vec4<f32>(), params.dropout_scale * p, keep);
        dp = select(vec4<f32>(), params.dropout_scale * dp, keep);
    }
    let ds = select(vec4<f32>(), p * (dp - delta), real);
    var slope = vec4<f32>(params.scale);
    if (SOFTCAP) {
        let t = tanh_of(product * params.softcap_scale);
        slope *= 1.0 - t * t;
    }
    return PairGradients(weight, ds, select(vec4<f32>(), ds * slope, real));
}
