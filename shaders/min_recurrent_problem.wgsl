// min_recurrent_problem: what the kernels of a minGRU or minLSTM share, forward and backward.

// the first gate of a unit; the others follow width elements apart
fn gates_at(place: Place) -> u32 {
    let unit = place.lane % params.width;
    return params.a_first + (index_of(place) - unit) * NUM_GATES + unit;
}

// a sigmoid whose tail goes on to 0: the slope of a closed gate is as small as it is. Beyond 87 exp
// would overflow
fn gate(x: f32) -> f32 {
    return or_nan(select(1.0 / (1.0 + exp(-clamp(x, -87.0, 87.0))), 0.0, x < -87.0), x);
}

// the new value n, before which POSITIVE puts the paper's g: x + 1/2, or sigmoid(x) below 0
fn candidate(x: f32) -> f32 {
    if (POSITIVE) {
        return select(gate(x), x + 0.5, x >= 0.0);
    }
    return x;
}

fn candidate_slope(x: f32) -> f32 {
    if (POSITIVE) {
        return select(gate(x) * gate(-x), 1.0, x >= 0.0);
    }
    return 1.0;
}

// How much of the state is kept and of the new value taken, and how keep grows with each gate
// before its activation. Each to its own precision: 1 - keep would have lost it.
struct Mix {
    keep: f32,
    take: f32,
    slope: array<f32, NUM_GATES>,
}
