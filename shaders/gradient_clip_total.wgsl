// gradient_clip_total: the norm of all gradients, and the factor that bounds it.
//     factor = min(1, max_norm / (norm + 1e-6))
// Source: Pascanu, Mikolov and Bengio 2013; the 1e-6 is PyTorch's clip_grad_norm_.
//
// Layout      partials: num_partials pairs (see norm_pair.wgsl); norm: the norm, then the factor
// Grid        one workgroup
// Workgroup   64 invocations; each joins every 64th pair
// Memory      wg_pairs: the pair of each invocation
// Holds       any sizes
// Precision   f32; the shares are joined in order
// Parts       common.wgsl, norm_pair.wgsl

struct Params {
    num_partials: u32,
    max_norm: f32,
    norm_first: u32,
}

@group(0) @binding(0) var<uniform>             params:   Params;
@group(0) @binding(1) var<storage, read>       partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm:     array<f32>;

const WORKGROUP_SIZE: u32 = 64u;

var<workgroup> wg_pairs: array<vec2<f32>, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn gradient_clip_total(@builtin(local_invocation_index) lane: u32) {
    var pair = vec2<f32>();
    for (var i = lane; i < params.num_partials; i += WORKGROUP_SIZE) {
        pair = joined(pair, vec2<f32>(partials[2u * i], partials[2u * i + 1u]));
    }
    wg_pairs[lane] = pair;
    // wg_pairs is visible
    workgroupBarrier();
    if (lane == 0u) {
        for (var share = 1u; share < WORKGROUP_SIZE; share++) {
            pair = joined(pair, wg_pairs[share]);
        }
        let total = norm_of(pair);
        norm[params.norm_first] = total;
        let factor = params.max_norm / (total + 1e-6);
        norm[params.norm_first + 1u] = select(factor, 1.0, factor > 1.0);
    }
}
