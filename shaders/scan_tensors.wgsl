// scan_tensors: a scan of two tensors, for scan_reduce.wgsl and scan_apply.wgsl.
//     h_t = a_t h_(t-1) + b_t
//
// Layout
//     a, b, output   [seq_len, lanes], from time window_time on
//     h_0, h_n       [lanes]

@group(0) @binding(0) var<uniform>             params:  Params;
@group(0) @binding(1) var<storage, read>       a:       array<f32>;
@group(0) @binding(2) var<storage, read>       b:       array<f32>;
@group(0) @binding(3) var<storage, read>       h_0:     array<f32>;
@group(0) @binding(4) var<storage, read>       lengths: array<u32>;
@group(0) @binding(5) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(6) var<storage, read_write> output:  array<f32>;
@group(0) @binding(7) var<storage, read_write> h_n:     array<f32>;

struct Step {
    a: f32,
    b: f32,
}

fn load(place: Place) -> Step {
    let at = index_of(place);
    return Step(a[params.a_first + at], b[params.b_first + at]);
}

fn identity() -> Step {
    return Step(1.0, 0.0);
}

fn affine(step: Step) -> Affine {
    return Affine(step.a, step.b);
}

fn emit(place: Place, step: Step, before: f32, after: f32) {
    output[params.output_first + index_of(place)] = select(0.0, after, place.inside);
}

fn initial(lane: u32) -> f32 {
    if (has(FROM_SCRATCH)) {
        return scratch[state_at(lane)];
    }
    if (has(HAS_INITIAL)) {
        return h_0[params.h_0_first + lane];
    }
    return 0.0;
}

fn finish(lane: u32, state: f32) {
    h_n[params.h_n_first + lane] = state;
}
