// attention_loads_vectors: vectors of four elements of a row, each loaded at once; past its end
// zeros. Same names as attention_loads.wgsl.
// Holds       HEAD_DIM, VALUE_DIM, all strides and where the tensors begin are multiples of four

// of grad_output
alias GradientWord = vec4<f32>;
// of a vector of key or value that waits in registers: as it is stored, since a conversion would
// wait for the load
alias Loaded = Word;

fn query_vector(first: u32, d: u32) -> vec4<f32> {
    if (d >= HEAD_DIM) {
        return vec4<f32>();
    }
    return elements(query[(first + d) / 4u]);
}

fn load_key(first: u32, d: u32) -> Loaded {
    if (d >= HEAD_DIM) {
        return Word();
    }
    return key[(first + d) / 4u];
}

fn load_value(first: u32, d: u32) -> Loaded {
    if (d >= VALUE_DIM) {
        return Word();
    }
    return value[(first + d) / 4u];
}

fn loaded(vector: Loaded) -> vec4<f32> {
    return elements(vector);
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
