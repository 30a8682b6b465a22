// recurrent_memory_atomic: scratch, with words through which workgroups talk. Same names as
// recurrent_memory.wgsl.

@group(0) @binding(5) var<storage, read_write> scratch: array<atomic<u32>>;

fn scratch_at(i: u32) -> f32 {
    return bitcast<f32>(atomicLoad(&scratch[i]));
}

fn set_scratch(i: u32, x: f32) {
    atomicStore(&scratch[i], bitcast<u32>(x));
}
