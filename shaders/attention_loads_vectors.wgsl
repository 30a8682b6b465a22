// attention_loads_vectors: vectors of four elements of a row, each loaded at once; past its end
// zeros. Same names as attention_loads.wgsl.
// Holds       HEAD_DIM, VALUE_DIM, all strides and where the tensors begin are multiples of four

// of grad_output
alias GradientWord = vec4<f32>;

fn query_vector(first: u32, d: u32) -> vec4<f32> {
    if (d >= HEAD_DIM) {
        return vec4<f32>();
    }
    return elements(query[(first + d) / 4u]);
}

fn key_vector(first: u32, d: u32) -> vec4<f32> {
    if (d >= HEAD_DIM) {
        return vec4<f32>();
    }
    return elements(key[(first + d) / 4u]);
}

fn value_vector(first: u32, d: u32) -> vec4<f32> {
    if (d >= VALUE_DIM) {
        return vec4<f32>();
    }
    return elements(value[(first + d) / 4u]);
}
