// element_any: elements of tensors whose types differ within one kernel. Each is bound as words;
// a constant of ElementType's order says which type it is.

const F32: u32 = 0u;
const F16: u32 = 1u;

// the word that holds element i
fn word_of_any(i: u32, element_type: u32) -> u32 {
    return select(i >> 1u, i, element_type == F32);
}

// element i, out of its word
fn element_any(word: u32, i: u32, element_type: u32) -> f32 {
    if (element_type == F32) {
        return bitcast<f32>(word);
    }
    if (element_type == F16) {
        return unpack2x16float(word)[i & 1u];
    }
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
}
