// recurrent_carry: states from where one part of a pass has left them to where the next one looks.
//
// Layout      from_h, from_c, to_h, to_c [num_elements]; from_h in runs of run_len elements that
//             begin run_stride apart; a source that is absent counts as zeros, a destination that
//             is absent is left out
// Grid        one invocation per element, folded to two dimensions
// Workgroup   64 invocations
// Memory      none
// Holds       any size
// Precision   exact
// Parts       common.wgsl

struct Params {
    num_elements: u32,
    flags: u32,
    from_h_first: u32,
    from_c_first: u32,
    to_h_first: u32,
    to_c_first: u32,
    run_len: u32,
    run_stride: u32,
}

const FROM_H: u32 = 1u;
const FROM_C: u32 = 2u;
const TO_H: u32 = 4u;
const TO_C: u32 = 8u;

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       from_h: array<f32>;
@group(0) @binding(2) var<storage, read>       from_c: array<f32>;
@group(0) @binding(3) var<storage, read_write> to_h:   array<f32>;
@group(0) @binding(4) var<storage, read_write> to_c:   array<f32>;

fn has(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

@compute @workgroup_size(64)
fn recurrent_carry(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let i = (workgroup.x + workgroup.y * num_workgroups.x) * 64u + lane;
    if (i >= params.num_elements) {
        return;
    }
    if (has(TO_H)) {
        var value = 0.0;
        if (has(FROM_H)) {
            let at = i / params.run_len * params.run_stride + i % params.run_len;
            value = from_h[params.from_h_first + at];
        }
        to_h[params.to_h_first + i] = value;
    }
    if (has(TO_C)) {
        var value = 0.0;
        if (has(FROM_C)) {
            value = from_c[params.from_c_first + i];
        }
        to_c[params.to_c_first + i] = value;
    }
}
