// scan_backward_states: what the gradients of a scan need of the states of the forward pass. Its
// order of time is the opposite of that of the backward pass.

// h of the step before in the forward pass
fn h_before(place: Place) -> f32 {
    let forward = has(REVERSE);
    let is_first = select(place.time + 1u == place.length, place.time == 0u, forward);
    if (is_first) {
        return kept_h_0(place.lane);
    }
    let time = select(place.time + 1u, place.time - 1u, forward);
    return output[params.output_first + (time - params.previous_time) * params.lanes + place.lane];
}

fn kept_h_0(lane: u32) -> f32 {
    if (has(KEEP_H_0)) {
        return scratch[kept_h_0_at(lane)];
    }
    return 0.0;
}

// always from scan_carry
fn initial(lane: u32) -> f32 {
    return scratch[carry_at(0u, lane)];
}
