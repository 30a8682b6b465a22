// recurrent_dropout: what the next layer reads of a layer's output, some of its elements dropped.
//     dropped[e] = output[e] / (1 - p) if noise[e] >= threshold, else 0
// noise[e] is word e % 4 of philox((e / 4 mod 2^32, layer, e / 4 / 2^32, 0), seed), with e the
// index into the layer's whole output, so that the backward pass can compute it again.
// Source: Srivastava et al. 2014; between the layers only, as in PyTorch (Zaremba et al. 2014).
//
// Layout      output, dropped: num_elements of them, from element first on
// Grid        one invocation per counter, folded to two dimensions
// Workgroup   64 invocations
// Memory      none, no barrier
// Holds       any first, of 64 bits; the elements of a dispatch lie within 2^31
// Precision   f32; one product, rounded once
// Parts       common.wgsl, philox.wgsl

struct Params {
    // e of the first element
    first_low: u32,
    first_high: u32,
    num_elements: u32,
    num_counters: u32,
    layer: u32,
    seed_low: u32,
    seed_high: u32,
    threshold: u32,
    scale: f32,
    output_first: u32,
    dropped_first: u32,
}

@group(0) @binding(0) var<uniform>             params:  Params;
@group(0) @binding(1) var<storage, read>       output:  array<f32>;
@group(0) @binding(2) var<storage, read_write> dropped: array<f32>;

@compute @workgroup_size(64)
fn recurrent_dropout(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let i = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (i >= params.num_counters) {
        return;
    }
    // first / 4 + i in 64 bits
    let first = (params.first_high << 30u) | (params.first_low >> 2u);
    let low = first + i;
    let high = (params.first_high >> 2u) + select(0u, 1u, low < first);
    let noise = philox(
        vec4<u32>(low, params.layer, high, 0u),
        vec2<u32>(params.seed_low, params.seed_high),
    );
    let skipped = params.first_low % 4u;
    // unroll
    for (var word = 0u; word < 4u; word++) {
        // below 0 for words before the first element, which wraps around
        let at = 4u * i + word - skipped;
        if (at < params.num_elements) {
            let kept = output[params.output_first + at] * params.scale;
            dropped[params.dropped_first + at] = select(0.0, kept, noise[word] >= params.threshold);
        }
    }
}
