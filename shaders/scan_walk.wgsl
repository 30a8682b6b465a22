// scan_walk: the steps of a chunk as scan_reduce and scan_apply read them: a few at a time, so that
// their loads are under way before the first state that waits for them.

fn step_at(place: Place) -> Step {
    if (place.inside) {
        return load(place);
    }
    return identity();
}

fn steps_from(first: u32, lane: u32, length: u32) -> array<Step, STEPS> {
    var steps: array<Step, STEPS>;
    // unroll
    for (var i = 0u; i < STEPS; i++) {
        steps[i] = step_at(place_of(first + i, lane, length));
    }
    return steps;
}
