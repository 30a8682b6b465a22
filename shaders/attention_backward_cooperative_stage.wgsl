// attention_backward_cooperative_stage: how rows and others get into workgroup memory as factors of
// cooperative matrices, in f16, on the way through registers; and the powers of two that keep what
// is f32 within the range of f16. A row of wg_stage has the first vector, then the second one.

// the largest f16, and its bits as an f32
const MOST: f32 = 65504.0;
const MOST_BITS: u32 = 0x477fe000u;
// a scale maps the largest magnitude to FIT .. 2 FIT: room to grow, and 25 powers of two below in
// which an f16 has all its bits
const FIT_EXPONENT: u32 = 11u;

// what a workgroup has met: elements that no f16 holds; of gradients of the output, and of the
// products' gradients, the bits of the largest magnitude
struct Met {
    nonfinite: u32,
    grad_output: u32,
    product: u32,
}

struct Staged {
    vector: array<vec4<f32>, STAGE_ITEMS>,
    met: Met,
}

fn both(a: Met, b: Met) -> Met {
    return Met(
        max(a.nonfinite, b.nonfinite), max(a.grad_output, b.grad_output),
        max(a.product, b.product),
    );
}

// of the finite ones among x; as integers, magnitudes are in the same order
fn largest_bits(x: vec4<f32>) -> u32 {
    let finite = bitcast<vec4<u32>>(select(vec4<f32>(), x, is_finite(x)));
    let bits = finite & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// the power of two for a largest magnitude; it and its inverse are finite and not 0
fn fitting(largest: u32) -> f32 {
    let exponent = clamp(254u + FIT_EXPONENT - (largest >> 23u), 2u, 252u);
    return bitcast<f32>(exponent << 23u);
}

fn outgrown(largest: u32, scale: f32) -> bool {
    return bitcast<f32>(largest) * scale > MOST;
}

// the largest power of two that is not above x
fn power_of_two(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) & 0x7f800000u);
}

// of the second vectors, those of queries are gradients of the output
fn is_grad_output(of_rows: bool, i: u32) -> bool {
    return of_rows != ROWS_ARE_KEYS && 4u * (i % (PAD / 4u)) >= HEAD_PAD;
}

// vectors of OTHERS rows or others from start on, zeros from end on
fn load_staged(lane: Lane, tile: Tile, of_rows: bool, start: u32, end: u32) -> Staged {
    var result: Staged;
    // unroll
    for (var n = 0u; n < STAGE_ITEMS; n++) {
        let i = lane.index + n * WORKGROUP_SIZE;
        let number = start + i / (PAD / 4u);
        let d = 4u * (i % (PAD / 4u));
        let second = d >= HEAD_PAD;
        let column = select(d, d - HEAD_PAD, second);
        var x = vec4<f32>();
        if (number < end && i < OTHERS * PAD / 4u) {
            if (of_rows) {
                x = row_vector(tile, number, column, second);
            } else {
                x = other_vector(tile, number, column, second);
            }
        }
        let bits = largest_bits(x);
        if (is_grad_output(of_rows, i)) {
            result.met.grad_output = max(result.met.grad_output, bits);
            result.met.nonfinite |= select(0u, 1u, is_nonfinite(x));
        } else {
            result.met.nonfinite |= select(0u, 1u, is_nonfinite(x) || bits > MOST_BITS);
        }
        result.vector[n] = x;
    }
    return result;
}

fn store_staged(lane: Lane, staged: Staged, of_rows: bool, grad_output_scale: f32) {
    // unroll
    for (var n = 0u; n < STAGE_ITEMS; n++) {
        let i = lane.index + n * WORKGROUP_SIZE;
        if (i < OTHERS * PAD / 4u) {
            let scale = select(1.0, grad_output_scale, is_grad_output(of_rows, i));
            let x = vec4<f16>(scale * staged.vector[n]);
            let at = i / (PAD / 4u) * STAGE_PITCH + 4u * (i % (PAD / 4u));
            // unroll
            for (var e = 0u; e < 4u; e++) {
                wg_stage[at + e] = x[e];
            }
        }
    }
}

// 0 * NaN is NaN: an element that is not finite adds nothing to the sums of pairs that are masked;
// where a pair is not, its gradient is not finite either
fn keep_finite(lane: Lane) {
    for (var i = lane.index; i < OTHERS * PAD; i += WORKGROUP_SIZE) {
        let at = i / PAD * STAGE_PITCH + i % PAD;
        if (is_nonfinite(vec4<f32>(f32(wg_stage[at])))) {
            wg_stage[at] = f16(0.0);
        }
    }
}

// of all invocations
fn meet(lane: Lane, own: Met) -> Met {
    let met = subgroupMax(vec4<u32>(own.nonfinite, own.grad_output, own.product, 0u));
    if (lane.index % SUBGROUP_SIZE == 0u) {
        wg_met[lane.index / SUBGROUP_SIZE] = met;
    }
    let all = workgroupUniformLoad(&wg_met);
    var result = vec4<u32>();
    // unroll
    for (var s = 0u; s < SUBGROUPS; s++) {
        result = max(result, all[s]);
    }
    return Met(result.x, result.y, result.z);
}
