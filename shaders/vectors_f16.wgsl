// vectors_f16: tensors of f16, four to a word. Same names as vectors_f32.wgsl.

alias Word = vec2<u32>;

fn elements(word: Word) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y));
}
