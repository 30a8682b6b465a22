// peak_dispatch: counts its own launches, for the time from one dispatch to the next that depends
// on it.
//
// Layout      count  one word
// Grid        one workgroup
// Workgroup   one invocation
// Memory      none
// Holds       nothing
// Precision   exact
// Parts       none

struct Params {
    increment: u32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read_write> count:  array<u32>;

@compute @workgroup_size(1)
fn peak_dispatch() {
    count[0] += params.increment;
}
