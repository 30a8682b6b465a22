// vectors_bf16: tensors of bf16, the upper halves of f32, four to a word. Same names as
// vectors_f32.wgsl.

alias Word = vec2<u32>;

fn elements(word: Word) -> vec4<f32> {
    let bits = vec4<u32>(word.x << 16u, word.x, word.y << 16u, word.y);
    return bitcast<vec4<f32>>(bits & vec4<u32>(0xffff0000u));
}
