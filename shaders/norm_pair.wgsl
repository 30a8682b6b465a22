// norm_pair: norms whose squares neither overflow nor vanish. (m, s) stands for m sqrt(s), with m
// the largest magnitude so far and s the sum of the squares relative to it.

fn joined(x: vec2<f32>, y: vec2<f32>) -> vec2<f32> {
    let most = max(x[0], y[0]);
    if (most == 0.0) {
        return vec2<f32>();
    }
    let by = vec2<f32>(x[0], y[0]) / most;
    return vec2<f32>(most, x[1] * by[0] * by[0] + y[1] * by[1] * by[1]);
}

fn pair_of(x: f32) -> vec2<f32> {
    // by its bits, since comparisons and max may drop a NaN
    let bits = bitcast<u32>(x) & 0x7fffffffu;
    if (bits >= 0x7f800000u) {
        return vec2<f32>(1.0, abs(x));
    }
    // 0 has no square relative to itself
    return select(vec2<f32>(), vec2<f32>(abs(x), 1.0), bits != 0u);
}

fn norm_of(pair: vec2<f32>) -> f32 {
    return pair[0] * sqrt(pair[1]);
}
