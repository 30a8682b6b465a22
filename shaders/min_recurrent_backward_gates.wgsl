// min_recurrent_backward_gates: the gradients of the gates, for scan_reduce.wgsl and
// scan_apply.wgsl; see scan_backward_tensors.wgsl for the scan itself.
//     dn = dh take         dkeep = dh (h_(t-1) - n)         dh_0 = s_1
//
// Layout
//     gates, grad_gates   [seq_len, batch, NUM_GATES, width], before their activation, from time
//                         window_time on
//     grad_output         [seq_len, lanes], from time window_time on
//     output              [seq_len, lanes], from time previous_time on
//     grad_h_0            [lanes]

@group(0) @binding(0) var<uniform>             params:      Params;
@group(0) @binding(1) var<storage, read>       gates:       array<f32>;
@group(0) @binding(2) var<storage, read>       output:      array<f32>;
@group(0) @binding(3) var<storage, read>       grad_output: array<f32>;
@group(0) @binding(4) var<storage, read>       lengths:     array<u32>;
@group(0) @binding(5) var<storage, read_write> scratch:     array<f32>;
@group(0) @binding(6) var<storage, read_write> grad_gates:  array<f32>;
@group(0) @binding(7) var<storage, read_write> grad_h_0:    array<f32>;

struct Step {
    keep: f32,
    grad: f32,
    // what grad_gates has per unit of dh
    share: array<f32, NUM_GATES>,
}

fn load(place: Place) -> Step {
    let at = gates_at(place);
    var x: array<f32, NUM_GATES>;
    // unroll
    for (var g = 0u; g < NUM_GATES; g++) {
        x[g] = gates[at + g * params.width];
    }
    var grad = 0.0;
    if (GRAD_OUTPUT) {
        grad = grad_output[params.grad_output_first + index_of(place)];
    }
    let mix = mix_of(x);
    let n = x[NUM_GATES - 1u];
    let difference = h_before(place) - candidate(n);
    var share: array<f32, NUM_GATES>;
    // unroll
    for (var g = 0u; g < NUM_GATES; g++) {
        share[g] = difference * mix.slope[g];
    }
    share[NUM_GATES - 1u] = mix.take * candidate_slope(n);
    return Step(mix.keep, grad, share);
}

fn identity() -> Step {
    return Step(1.0, 0.0, array<f32, NUM_GATES>());
}

fn affine(step: Step) -> Affine {
    return Affine(step.keep, step.keep * step.grad);
}

fn emit(place: Place, step: Step, before: f32, after: f32) {
    let unit = place.lane % params.width;
    let at = params.grad_a_first + (index_of(place) - unit) * NUM_GATES + unit;
    let dh = step.grad + before;
    // unroll
    for (var g = 0u; g < NUM_GATES; g++) {
        grad_gates[at + g * params.width] = select(0.0, dh * step.share[g], place.inside);
    }
}

fn finish(lane: u32, state: f32) {
    grad_h_0[params.h_n_first + lane] = state;
}
