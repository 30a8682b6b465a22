// common: what every kernel may call. No bindings, no workgroup memory.

// a masked score. Finite, because WGSL lets a compiler assume that there is no infinity; below
// every score that a bias above -1e30 can lead to
const MASKED: f32 = -3e38;
const MASKED_BITS: u32 = 0xff61b1e6u;
const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// the bits of -infinity, for outputs that are written as integers
const NEGATIVE_INFINITY_BITS: u32 = 0xff800000u;

// by its bits: a compiler may take x != x to be false
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// y, or x itself where that is NaN, which min, max and clamp may turn into a number
fn or_nan(y: f32, x: f32) -> f32 {
    return select(y, x, is_nan(x));
}

// tanh may be computed as sinh / cosh: NaN from |x| = 44 on, where those overflow (at 15 it is 1 in
// f32), and near 0 the difference of two exponentials, which has few digits of its own. There it is
// its series, to 1e-8 of the whole.
fn tanh_bounded(x: f32) -> f32 {
    let y = clamp(x, -15.0, 15.0);
    let square = y * y;
    let fifth = fma(square, fma(square, 62.0 / 2835.0, -17.0 / 315.0), 2.0 / 15.0);
    let series = fma(y * square, fma(square, fifth, -1.0 / 3.0), y);
    return or_nan(select(tanh(y), series, square < 0.0625), x);
}

// exp overflows at 88; beyond 30 the sigmoid is 0 or 1 to within 1e-13
fn sigmoid(x: f32) -> f32 {
    return or_nan(1.0 / (1.0 + exp(-clamp(x, -30.0, 30.0))), x);
}

// sum + dot(a, b), four fused multiply-adds
fn add_dot(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}
