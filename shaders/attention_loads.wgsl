// attention_loads: vectors of four elements of a row; past its end zeros. Same names as
// attention_loads_vectors.wgsl.

// of grad_output
alias GradientWord = f32;
// of a vector of key or value that waits in registers
alias Loaded = vec4<f32>;

fn query_vector(first: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>();
    // unroll
    for (var c = 0u; c < 4u; c++) {
        if (d + c < HEAD_DIM) {
            let i = first + d + c;
            x[c] = element(query[word_of(i)], i);
        }
    }
    return x;
}

fn key_vector(first: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>();
    // unroll
    for (var c = 0u; c < 4u; c++) {
        if (d + c < HEAD_DIM) {
            let i = first + d + c;
            x[c] = element(key[word_of(i)], i);
        }
    }
    return x;
}

fn value_vector(first: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>();
    // unroll
    for (var c = 0u; c < 4u; c++) {
        if (d + c < VALUE_DIM) {
            let i = first + d + c;
            x[c] = element(value[word_of(i)], i);
        }
    }
    return x;
}

fn load_key(first: u32, d: u32) -> Loaded {
    return key_vector(first, d);
}

fn load_value(first: u32, d: u32) -> Loaded {
    return value_vector(first, d);
}

fn loaded(vector: Loaded) -> vec4<f32> {
    return vector;
}
