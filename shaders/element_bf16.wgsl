// element_bf16: tensors of bf16, the upper halves of f32, two to a word. Same names as
// element_f32.wgsl.

alias Word = u32;

fn word_of(i: u32) -> u32 {
    return i >> 1u;
}

fn element(word: Word, i: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
}
