// recurrent_backward_resident: many steps of the reverse sweep of one layer in one dispatch; a
// workgroup carries its rows back through time.
//
// Formulas in recurrent_backward_problem.wgsl and the cell's file. No workgroup waits for another.
//
// Layout      see recurrent_backward_problem.wgsl
// Grid        one workgroup per BATCH rows and direction, folded to two dimensions
// Workgroup   LANES * SHARES invocations; invocation (u, s) sums, over the rows of the gates s + q
//             * SHARES, the columns u + i * LANES of weight_hh (i < COLUMNS), then computes the
//             gradients of the (batch row, unit) pairs index + p * WORKGROUP_SIZE (p < PAIRS),
//             whose dh and dc it keeps in registers
// Memory      wg_gates [BATCH, NUM_GATES, BLOCKS * 8], wg_sums [BATCH, SHARES, COLUMNS * LANES]
// Holds       HIDDEN == hidden_size, STATE == state_size, BLOCKS * 8 >= HIDDEN, COLUMNS * LANES >=
//             STATE, LANES a multiple of 8, NUM_GATES a multiple of SHARES, SHARES == 1 where a
//             reset comes before the product, PAIRS * WORKGROUP_SIZE >= BATCH * HIDDEN, BATCH a
//             multiple of TOGETHER
// Precision   f32; each sum in an order fixed by the constants
// Parts       common.wgsl, recurrent_backward_problem.wgsl, recurrent_slopes_*.wgsl,
//             recurrent_backward_cell_*.wgsl,
//             recurrent_backward_block_workgroup.wgsl or recurrent_backward_block_subgroup.wgsl,
//             recurrent_backward_added.wgsl, in_order.wgsl and
//             recurrent_backward_sums_registers.wgsl or recurrent_backward_sums_streamed.wgsl

const WORKGROUP_SIZE: u32 = LANES * SHARES;

// the d_gates of a step; past HIDDEN zeros
var<workgroup> wg_gates: array<f32, BATCH * NUM_GATES * BLOCKS * 8u>;
var<workgroup> wg_sums: array<f32, BATCH * SHARES * COLUMNS * LANES>;

fn column_of(lane: Lane, i: u32) -> u32 {
    return lane.index % LANES + i * LANES;
}

fn gate_of(lane: Lane, q: u32) -> u32 {
    return lane.index / LANES + q * SHARES;
}

// whether the rows of the gates q belong to a phase: of two, that of n comes first
fn in_phase(q: u32, phase: u32) -> bool {
    return PROJECTED | (NUM_PHASES == 1u) | ((q == 2u) == (phase == 0u));
}

// whether a pair is one of a row and an element of the hidden state, or of a row and a unit
fn is_state(pair: u32, row_start: u32) -> bool {
    return pair < BATCH * STATE && row_start + pair / STATE < params.batch;
}

fn is_unit(pair: u32, row_start: u32) -> bool {
    return pair < BATCH * HIDDEN && row_start + pair / HIDDEN < params.batch;
}

// the sums of a phase, of TOGETHER batch rows at a time, to wg_sums
fn store_sums(lane: Lane, direction: u32, phase: u32) {
    for (var first = 0u; first < BATCH; first += TOGETHER) {
        let sums = column_sums(lane, direction, phase, first);
        // unroll
        for (var b = 0u; b < TOGETHER; b++) {
            // unroll
            for (var i = 0u; i < COLUMNS; i++) {
                let share = (first + b) * SHARES + lane.index / LANES;
                wg_sums[share * COLUMNS * LANES + column_of(lane, i)] = sums[b][i];
            }
        }
    }
}

fn product(b: u32, unit: u32) -> f32 {
    var sum = 0.0;
    // unroll
    for (var s = 0u; s < SHARES; s++) {
        sum += wg_sums[(b * SHARES + s) * COLUMNS * LANES + unit];
    }
    return sum;
}

// weight_hr^T dh, which lies in the first of the sums
fn unprojected_gradient(direction: u32, b: u32, unit: u32) -> f32 {
    var sum = 0.0;
    for (var k = 0u; k < STATE; k++) {
        let w = weight_hr(direction, k / 4u, unit)[k % 4u];
        sum = fma(w, wg_sums[b * SHARES * COLUMNS * LANES + k], sum);
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn recurrent_backward_resident(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let row_start = group % params.batch_tiles * BATCH;
    let direction = params.direction + group / params.batch_tiles;
    load_weights(lane, direction);

    for (var i = lane.index; i < BATCH * NUM_GATES * BLOCKS * 8u; i += WORKGROUP_SIZE) {
        wg_gates[i] = 0.0;
    }
    // wg_gates is zeroed
    workgroupBarrier();
    // dh of the pairs of rows and elements of the hidden state, dc of those of rows and units
    var carry_h: array<f32, PAIRS>;
    var carry_c: array<f32, PAIRS>;
    // unroll
    for (var p = 0u; p < PAIRS; p++) {
        carry_h[p] = 0.0;
        carry_c[p] = 0.0;
        let pair = lane.index + p * WORKGROUP_SIZE;
        if (has(HAS_CARRY) && is_state(pair, row_start)) {
            let at = carry_h_at(direction, row_start + pair / STATE, pair % STATE);
            carry_h[p] = scratch[at];
        }
        if (has(HAS_CARRY) && HAS_CELL && is_unit(pair, row_start)) {
            let at = carry_c_at(direction, row_start + pair / HIDDEN, pair % HIDDEN);
            carry_c[p] = scratch[at];
        }
    }

    for (var place = params.first_place; place < params.first_place + params.num_places; place++) {
        let step = step_of(place);
        let time = time_of(step, direction);
        // pass 1: the cells
        if (PROJECTED) {
            // unroll
            for (var p = 0u; p < PAIRS; p++) {
                let pair = lane.index + p * WORKGROUP_SIZE;
                if (is_state(pair, row_start)) {
                    let b = pair / STATE;
                    let unit = pair % STATE;
                    let row = row_start + b;
                    let inside = time < length_of(row);
                    var dh = 0.0;
                    if (inside) {
                        let cut = is_cut(step, direction, row);
                        dh = select(carry_h[p], 0.0, cut);
                        dh += output_gradient(step, direction, row, unit);
                        carry_h[p] = 0.0;
                    }
                    store_dh(step, direction, row, unit, dh);
                    // nobody else reads this place of the sums of the step behind
                    wg_sums[b * SHARES * COLUMNS * LANES + unit] = dh;
                }
            }
            // the dh in wg_sums are visible
            workgroupBarrier();
        }
        // unroll
        for (var p = 0u; p < PAIRS; p++) {
            let pair = lane.index + p * WORKGROUP_SIZE;
            if (is_unit(pair, row_start)) {
                let b = pair / HIDDEN;
                let row = row_start + b;
                let unit = pair % HIDDEN;
                let inside = time < length_of(row);
                var gradient = Gradient();
                gradient.h = carry_h[p];
                gradient.c = carry_c[p];
                if (inside) {
                    let cut = is_cut(step, direction, row);
                    gradient.c = select(carry_c[p], 0.0, cut);
                    var dh = 0.0;
                    if (PROJECTED) {
                        dh = unprojected_gradient(direction, b, unit);
                    } else {
                        dh = select(carry_h[p], 0.0, cut);
                        dh += output_gradient(step, direction, row, unit);
                        store_dh(step, direction, row, unit, dh);
                    }
                    let saved = saved_of(step, direction, row, unit);
                    let own = unit_weights(direction, unit);
                    gradient = cell_backward(direction, saved, own, dh, gradient.c);
                } else if (!PROJECTED) {
                    store_dh(step, direction, row, unit, 0.0);
                }
                store_gradient(step, direction, row, unit, gradient);
                carry_c[p] = gradient.c;
                if (!PROJECTED) {
                    carry_h[p] = gradient.h;
                }
                // unroll
                for (var gate = 0u; gate < NUM_GATES; gate++) {
                    let at = (b * NUM_GATES + gate) * BLOCKS * 8u + unit;
                    let slot = select(gate, 3u, SPLIT_N && gate == 2u);
                    wg_gates[at] = gradient.gates[slot];
                }
            }
        }
        // wg_gates is visible, wg_sums is free
        workgroupBarrier();
        // pass 2: weight_hh^T d_gates
        store_sums(lane, direction, 0u);
        // wg_sums is visible, wg_gates is free
        workgroupBarrier();
        if (NUM_PHASES == 2u && !PROJECTED) {
            // unroll
            for (var p = 0u; p < PAIRS; p++) {
                let pair = lane.index + p * WORKGROUP_SIZE;
                if (is_unit(pair, row_start)) {
                    let b = pair / HIDDEN;
                    let row = row_start + b;
                    let unit = pair % HIDDEN;
                    if (time < length_of(row)) {
                        let saved = saved_of(step, direction, row, unit);
                        let reset = reset_backward(direction, saved, product(b, unit));
                        carry_h[p] += reset[1];
                        wg_gates[b * NUM_GATES * BLOCKS * 8u + unit] = reset[0];
                        scratch[grads_at(step, direction, row) + unit] = reset[0];
                    }
                }
            }
            // wg_gates is visible, wg_sums is free
            workgroupBarrier();
            store_sums(lane, direction, 1u);
            // wg_sums is visible, wg_gates is free
            workgroupBarrier();
        }
        // unroll
        for (var p = 0u; p < PAIRS; p++) {
            let pair = lane.index + p * WORKGROUP_SIZE;
            if (is_state(pair, row_start)) {
                carry_h[p] += product(pair / STATE, pair % STATE);
            }
        }
    }
    // unroll
    for (var p = 0u; p < PAIRS; p++) {
        let pair = lane.index + p * WORKGROUP_SIZE;
        if (is_state(pair, row_start)) {
            let at = carry_h_at(direction, row_start + pair / STATE, pair % STATE);
            scratch[at] = carry_h[p];
        }
        if (HAS_CELL && is_unit(pair, row_start)) {
            let at = carry_c_at(direction, row_start + pair / HIDDEN, pair % HIDDEN);
            scratch[at] = carry_c[p];
        }
    }
}
