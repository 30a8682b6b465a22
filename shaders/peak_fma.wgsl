// peak_fma: nothing but f32 multiply-adds, for the roof of a device.
//
//     x = multiplier * x + addend, STEPS * rounds times, in ACCUMULATORS independent chains
// With multiplier = addend = 1 the result counts the steps, exactly up to 2^24; both come from the
// uniform, so that no compiler can know it.
//
// Layout      output  one Elem per invocation: the sum of its chains
// Grid        x: any number of workgroups
// Workgroup   WORKGROUP_SIZE invocations
// Memory      registers only
// Holds       ACCUMULATORS * (STEPS * rounds + 256 + ACCUMULATORS) < 2^24
// Precision   f32; fma() with FUSED, else a product and a sum that the driver may contract
// Parts       alias Elem = f32 or vec4<f32>

struct Params {
    rounds: u32,
    multiplier: f32,
    addend: f32,
}

@group(0) @binding(0) var<uniform>             params: Params;
@group(0) @binding(1) var<storage, read_write> output: array<Elem>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn peak_fma(@builtin(global_invocation_id) id: vec3<u32>) {
    let multiplier = Elem(params.multiplier);
    let addend = Elem(params.addend);
    var x: array<Elem, ACCUMULATORS>;
    // unroll
    for (var a = 0u; a < ACCUMULATORS; a++) {
        x[a] = Elem(f32(id.x % 256u + a));
    }
    for (var round = 0u; round < params.rounds; round++) {
        // unroll
        for (var step = 0u; step < STEPS; step++) {
            // unroll
            for (var a = 0u; a < ACCUMULATORS; a++) {
                if (FUSED) {
                    x[a] = fma(multiplier, x[a], addend);
                } else {
                    x[a] = multiplier * x[a] + addend;
                }
            }
        }
    }
    var sum = Elem();
    // unroll
    for (var a = 0u; a < ACCUMULATORS; a++) {
        sum += x[a];
    }
    output[id.x] = sum;
}
