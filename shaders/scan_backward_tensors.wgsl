// scan_backward_tensors: the gradients of a scan, for scan_reduce.wgsl and scan_apply.wgsl.
//
// With g_t = dL/doutput_t and s_t = a_t dh_t, which is what step t - 1 gets to feel:
//     dh_t = g_t + s_(t+1)     s_t = a_t s_(t+1) + a_t g_t
//     db_t = dh_t              da_t = dh_t h_(t-1)             dh_0 = s_1
// which is a scan in the opposite order, from dL/dh_n.
//
// Layout
//     a, grad_output, grad_a, grad_b   [seq_len, lanes], from time window_time on
//     output                           [seq_len, lanes], from time previous_time on
//     grad_h_0                         [lanes]

@group(0) @binding(0) var<uniform>             params:      Params;
@group(0) @binding(1) var<storage, read>       a:           array<f32>;
@group(0) @binding(2) var<storage, read>       output:      array<f32>;
@group(0) @binding(3) var<storage, read>       grad_output: array<f32>;
@group(0) @binding(4) var<storage, read>       lengths:     array<u32>;
@group(0) @binding(5) var<storage, read_write> scratch:     array<f32>;
@group(0) @binding(6) var<storage, read_write> grad_a:      array<f32>;
@group(0) @binding(7) var<storage, read_write> grad_b:      array<f32>;
@group(0) @binding(8) var<storage, read_write> grad_h_0:    array<f32>;

struct Step {
    a: f32,
    grad: f32,
    h: f32,
}

fn load(place: Place) -> Step {
    let at = index_of(place);
    var grad = 0.0;
    if (GRAD_OUTPUT) {
        grad = grad_output[params.grad_output_first + at];
    }
    return Step(a[params.a_first + at], grad, h_before(place));
}

fn identity() -> Step {
    return Step(1.0, 0.0, 0.0);
}

fn affine(step: Step) -> Affine {
    return Affine(step.a, step.a * step.grad);
}

fn emit(place: Place, step: Step, before: f32, after: f32) {
    let at = index_of(place);
    let dh = step.grad + before;
    grad_a[params.grad_a_first + at] = select(0.0, dh * step.h, place.inside);
    grad_b[params.grad_b_first + at] = select(0.0, dh, place.inside);
}

fn finish(lane: u32, state: f32) {
    grad_h_0[params.h_n_first + lane] = state;
}
