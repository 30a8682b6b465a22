// gemm_problem: the bindings, parameters and index arithmetic that both GEMM kernels share.
//
// output = a b + bias, or output += a b + bias with ACCUMULATE. Matrices by their strides in
// elements, so that a transposed one is only another pair of strides. a and b may be stored as
// halves (A_ELEMENT, B_ELEMENT); all else is f32.
// With A_FOLDED the rows of a have two strides: a_outer from one run of a_inner rows to the next.
// Needs the part element_any.wgsl.
//
// Layout
//     a       [m, k]
//     b       [k, n]
//     bias    [n]            with BIAS
//     output  [m, n]         rows output_row elements apart

struct Params {
    m: u32,
    n: u32,
    k: u32,
    column_tiles: u32,
    num_groups: u32,
    a_first: u32,
    a_row: u32,
    a_column: u32,
    b_first: u32,
    b_row: u32,
    b_column: u32,
    bias_first: u32,
    output_first: u32,
    output_row: u32,
    a_inner: u32,
    a_outer: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       a:      array<u32>;
@group(0) @binding(2) var<storage, read>       b:      array<u32>;
@group(0) @binding(3) var<storage, read>       bias:   array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

fn a_at(row: u32, k: u32) -> f32 {
    var at = params.a_first + row * params.a_row + k * params.a_column;
    if (A_FOLDED) {
        let inner = row % params.a_inner * params.a_row;
        at = params.a_first + row / params.a_inner * params.a_outer + inner + k * params.a_column;
    }
    return element_any(a[word_of_any(at, A_ELEMENT)], at, A_ELEMENT);
}

fn b_at(k: u32, column: u32) -> f32 {
    let at = params.b_first + k * params.b_row + column * params.b_column;
    return element_any(b[word_of_any(at, B_ELEMENT)], at, B_ELEMENT);
}

fn store(row: u32, column: u32, sum: f32) {
    let at = params.output_first + row * params.output_row + column;
    var result = sum;
    if (BIAS) {
        result += bias[params.bias_first + column];
    }
    if (ACCUMULATE) {
        result += output[at];
    }
    output[at] = result;
}
