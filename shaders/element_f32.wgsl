// element_f32: tensors of f32. Same names as element_f16.wgsl and element_bf16.wgsl.

alias Word = f32;

// the word that holds an element
fn word_of(i: u32) -> u32 {
    return i;
}

// element i, out of its word
fn element(word: Word, i: u32) -> f32 {
    return word;
}
