// gemm_problem: the bindings, parameters and index arithmetic that both GEMM kernels share.
//
// output = a b + bias, or output += a b + bias with ACCUMULATE. Matrices by their strides in
// elements, so that a transposed one is only another pair of strides. a and b may be stored as
// halves (A_ELEMENT, B_ELEMENT); all else is f32.
// With A_FOLDED, B_FOLDED or OUTPUT_FOLDED the rows of that matrix have two strides: its own within
// runs of fold_inner rows, and fold_outer from one run to the next.
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
    fold_inner: u32,
    fold_outer: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       a:      array<u32>;
@group(0) @binding(2) var<storage, read>       b:      array<u32>;
@group(0) @binding(3) var<storage, read>       bias:   array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

// where a row of the matrix that is folded begins
fn folded(row: u32, stride: u32) -> u32 {
    return row / params.fold_inner * params.fold_outer + row % params.fold_inner * stride;
}

// where column 0 of a row of a lies
fn a_row_at(row: u32) -> u32 {
    if (A_FOLDED) {
        return params.a_first + folded(row, params.a_row);
    }
    return params.a_first + row * params.a_row;
}

fn a_element(at: u32) -> f32 {
    return element_any(a[word_of_any(at, A_ELEMENT)], at, A_ELEMENT);
}

fn a_at(row: u32, k: u32) -> f32 {
    return a_element(a_row_at(row) + k * params.a_column);
}

// the same of b
fn b_row_at(k: u32) -> u32 {
    if (B_FOLDED) {
        return params.b_first + folded(k, params.b_row);
    }
    return params.b_first + k * params.b_row;
}

fn b_element(at: u32) -> f32 {
    return element_any(b[word_of_any(at, B_ELEMENT)], at, B_ELEMENT);
}

fn b_at(k: u32, column: u32) -> f32 {
    return b_element(b_row_at(k) + column * params.b_column);
}

fn store(row: u32, column: u32, sum: f32) {
    var at = params.output_first + column;
    if (OUTPUT_FOLDED) {
        at += folded(row, params.output_row);
    } else {
        at += row * params.output_row;
    }
    var result = sum;
    if (BIAS) {
        result += bias[params.bias_first + column];
    }
    if (ACCUMULATE) {
        result += output[at];
    }
    output[at] = result;
}
