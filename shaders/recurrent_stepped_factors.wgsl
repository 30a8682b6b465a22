// recurrent_stepped_factors: what recurrent_stepped.wgsl sums: which gates of which units and rows,
// from which factors.

struct Sums {
    step_index: u32,
    second_phase: bool,
    direction: u32,
    row_start: u32,
    unit_start: u32,
    num_units: u32,
    num_factors: u32,
}

// what the rows of the matrix are multiplied with: h, in the second phase what the first has left
fn factor(second_phase: bool, moment: Moment, direction: u32, row: u32, unit: u32) -> f32 {
    if (NUM_PHASES == 2u && second_phase) {
        return scratch_at(factor_at(direction, row, unit));
    }
    return previous_h(moment, direction, row, unit);
}

// whether a phase sums gate g; a projection takes the place of gate 0
fn is_summed(second_phase: bool, g: u32) -> bool {
    if (PROJECTED) {
        return !second_phase || g == 0u;
    }
    return NUM_PHASES == 1u || (g >= FIRST_GATES) == second_phase;
}

// four weights of gate g of a unit
fn weights_of(second_phase: bool, direction: u32, k4: u32, g: u32, unit: u32) -> vec4<f32> {
    if (PROJECTED && second_phase) {
        return weight_hr(direction, k4, unit);
    }
    return weight_hh(direction, k4, g * params.hidden_size + unit);
}

// four factors of a row from number k on, 0 past their end and past the last row
fn factors_of(sums: Sums, row: u32, k: u32) -> vec4<f32> {
    var result = vec4<f32>();
    if (row < params.batch) {
        let moment = moment_of(sums.step_index, row, sums.direction);
        // unroll
        for (var c = 0u; c < 4u; c++) {
            if (k + c < sums.num_factors) {
                result[c] = factor(sums.second_phase, moment, sums.direction, row, k + c);
            }
        }
    }
    return result;
}
