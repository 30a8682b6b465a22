// element_f16: tensors of f16, two to a word. Same names as element_f32.wgsl.

alias Word = u32;

fn word_of(i: u32) -> u32 {
    return i >> 1u;
}

fn element(word: Word, i: u32) -> f32 {
    return unpack2x16float(word)[i & 1u];
}
