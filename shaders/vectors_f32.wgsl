// vectors_f32: tensors of f32 whose rows lie at multiples of four elements, four to a word. Same
// names as vectors_f16.wgsl and vectors_bf16.wgsl; they take the place of element_*.wgsl.

alias Word = vec4<f32>;

fn elements(word: Word) -> vec4<f32> {
    return word;
}
