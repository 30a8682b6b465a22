// peak_copy: copy = source, for the memory bandwidth of a device.
//
// Layout      source, copy   [num_elements], Elem
// Grid        one workgroup per WORKGROUP_SIZE * EACH elements, folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; neighbours copy neighbouring elements, EACH times
// Memory      none
// Holds       nothing
// Precision   bit for bit
// Parts       alias Elem = u32 or vec4<u32>

struct Params {
    num_elements: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read>       source: array<Elem>;
@group(0) @binding(2) var<storage, read_write> copy: array<Elem>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn peak_copy(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    let first = group * WORKGROUP_SIZE * EACH + index;
    // unroll
    for (var e = 0u; e < EACH; e++) {
        let i = first + e * WORKGROUP_SIZE;
        if (i < params.num_elements) {
            copy[i] = source[i];
        }
    }
}
