// recurrent_probe: whether num_groups workgroups run at the same time: each waits for all others,
// with a bound.
//
// Layout      words   how many workgroups have arrived, how many have met all others, then zeros
// Grid        one workgroup each
// Workgroup   256 invocations, of which one waits
// Memory      wg_fill: as much as a device has at least, so that no two share more than they could
//             in recurrent_persistent.wgsl; registers: HELD words each, as its weights are held
// Holds       words are 0 before
// Precision   exact
// Parts       common.wgsl

struct Params {
    num_groups: u32,
    spin_bound: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read_write> words:  array<atomic<u32>>;

const FILL: u32 = 3968u;
const WORDS: u32 = 64u;

var<workgroup> wg_fill: array<u32, FILL>;

@compute @workgroup_size(256)
fn recurrent_probe(@builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < FILL; i += 256u) {
        wg_fill[i] = params.num_groups;
    }
    // loaded before the wait and used behind it: atomically, so no compiler loads them later
    var held: array<u32, HELD>;
    // unroll
    for (var h = 0u; h < HELD; h++) {
        held[h] = atomicOr(&words[2u + (lane + h) % (WORDS - 2u)], 0u);
    }
    // wg_fill is visible
    workgroupBarrier();
    if (lane == 0u) {
        atomicAdd(&words[0], 1u);
        for (var i = 0u; i < params.spin_bound; i++) {
            if (atomicOr(&words[0], 0u) >= wg_fill[i % FILL]) {
                atomicAdd(&words[1], 1u);
                break;
            }
        }
    }
    // 0, as the words are, but no compiler knows: a number that is no count
    var sum = 0u;
    // unroll
    for (var h = 0u; h < HELD; h++) {
        sum = sum * params.spin_bound + held[h];
    }
    if (sum != 0u) {
        atomicAdd(&words[1], params.num_groups);
    }
}
