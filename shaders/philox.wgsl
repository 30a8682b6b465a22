// philox: Philox 4x32-10, a random number generator without state: four words of a counter and two
// of a key give four words of noise. src/philox.rs computes the same stream.
// Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".

// the high words of a * b; WGSL has no 64-bit product
fn high_product(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let a_low = a & vec2<u32>(0xffffu);
    let a_high = a >> vec2<u32>(16u);
    let b_low = b & vec2<u32>(0xffffu);
    let b_high = b >> vec2<u32>(16u);
    let middle = a_high * b_low + ((a_low * b_low) >> vec2<u32>(16u));
    let carried = a_low * b_high + (middle & vec2<u32>(0xffffu));
    return a_high * b_high + (middle >> vec2<u32>(16u)) + (carried >> vec2<u32>(16u));
}

fn philox(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    let multiplier = vec2<u32>(0xd2511f53u, 0xcd9e8d57u);
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round++) {
        let factor = c.xz;
        let high = high_product(multiplier, factor);
        let low = multiplier * factor;
        c = vec4<u32>(high.y ^ c.y ^ k.x, low.y, high.x ^ c.w ^ k.y, low.x);
        k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}
