// recurrent_memory: scratch, whose words a workgroup has to itself. Same names as
// recurrent_memory_atomic.wgsl.

@group(0) @binding(5) var<storage, read_write> scratch: array<f32>;

fn scratch_at(i: u32) -> f32 {
    return scratch[i];
}

fn set_scratch(i: u32, x: f32) {
    scratch[i] = x;
}
