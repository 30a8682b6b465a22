// recurrent_resident: all steps of one layer in one dispatch; a workgroup carries its rows through
// time.
//
// Formulas in recurrent_problem.wgsl and the cell's file. No workgroup waits for another.
//
// Layout      see recurrent_problem.wgsl
// Grid        one workgroup per BATCH rows and direction, folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations; invocation i sums the rows i + r * WORKGROUP_SIZE of
//             weight_hh (r < ROWS), then computes the cell of the (batch row, unit) pairs i + p *
//             WORKGROUP_SIZE (p < PAIRS), whose cell state it keeps in registers
// Memory      wg_h [BATCH, BLOCKS * 8], wg_gates [BATCH, ROWS * WORKGROUP_SIZE]
// Holds       HIDDEN == hidden_size, STATE == state_size, BLOCKS * 8 >= STATE, ROWS *
//             WORKGROUP_SIZE >= NUM_GATES * HIDDEN, PAIRS * WORKGROUP_SIZE >= BATCH * HIDDEN,
//             BATCH a multiple of TOGETHER
// Precision   f32; each sum in an order fixed by the constants
// Parts       common.wgsl, recurrent_memory.wgsl, recurrent_problem.wgsl, recurrent_save.wgsl,
//             recurrent_cell_*.wgsl,
//             recurrent_hidden_workgroup.wgsl or recurrent_hidden_subgroup.wgsl,
//             in_order.wgsl and recurrent_sums_registers.wgsl, or recurrent_sums_streamed.wgsl

const GATE_ROWS: u32 = NUM_GATES * HIDDEN;

// h of the step before; past STATE zeros
var<workgroup> wg_h: array<f32, BATCH * BLOCKS * 8u>;
var<workgroup> wg_gates: array<f32, BATCH * ROWS * WORKGROUP_SIZE>;

// the row of weight_hh that is an invocation's row r: those of the first phase, then the others
fn gate_row_of(lane: Lane, r: u32) -> u32 {
    if (r < FIRST_ROWS) {
        return lane.index + r * WORKGROUP_SIZE;
    }
    return FIRST_GATES * HIDDEN + lane.index + (r - FIRST_ROWS) * WORKGROUP_SIZE;
}

// the sums of a phase, of TOGETHER batch rows at a time, to wg_gates
fn store_sums(lane: Lane, direction: u32, phase: u32) {
    for (var first = 0u; first < BATCH; first += TOGETHER) {
        let sums = gate_sums(lane, direction, phase, first);
        // unroll
        for (var b = 0u; b < TOGETHER; b++) {
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                if ((FIRST_GATES == NUM_GATES) | ((r < FIRST_ROWS) == (phase == 0u))) {
                    wg_gates[((first + b) * ROWS + r) * WORKGROUP_SIZE + lane.index] = sums[b][r];
                }
            }
        }
    }
}

// the sums of a unit; those of the second phase are there when it is over
fn gates_h(b: u32, unit: u32) -> array<f32, NUM_GATES> {
    var gates: array<f32, NUM_GATES>;
    // unroll
    for (var g = 0u; g < NUM_GATES; g++) {
        var at = b * ROWS * WORKGROUP_SIZE + g * HIDDEN + unit;
        if (g >= FIRST_GATES) {
            at += FIRST_ROWS * WORKGROUP_SIZE - FIRST_GATES * HIDDEN;
        }
        gates[g] = wg_gates[at];
    }
    return gates;
}

// where, with PROJECTED, the cell of a unit leaves its h: the sum of its first gate has been read
fn unprojected_at(b: u32, unit: u32) -> u32 {
    return b * ROWS * WORKGROUP_SIZE + unit;
}

// weight_hr times the h of all units, one element of it
fn projected(direction: u32, b: u32, unit: u32) -> f32 {
    var sum = 0.0;
    for (var k4 = 0u; k4 < HIDDEN / 4u; k4++) {
        let w = weight_hr(direction, k4, unit);
        // unroll
        for (var c = 0u; c < 4u; c++) {
            sum = fma(w[c], wg_gates[unprojected_at(b, 4u * k4 + c)], sum);
        }
    }
    for (var k = HIDDEN / 4u * 4u; k < HIDDEN; k++) {
        let w = weight_hr(direction, k / 4u, unit)[k % 4u];
        sum = fma(w, wg_gates[unprojected_at(b, k)], sum);
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn recurrent_resident(
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

    var state: array<State, PAIRS>;
    for (var i = lane.index; i < BATCH * BLOCKS * 8u; i += WORKGROUP_SIZE) {
        wg_h[i] = 0.0;
    }
    // wg_h is zeroed
    workgroupBarrier();
    // unroll
    for (var p = 0u; p < PAIRS; p++) {
        let pair = lane.index + p * WORKGROUP_SIZE;
        let b = pair / HIDDEN;
        let row = row_start + b;
        state[p] = State(0.0, 0.0);
        if (b < BATCH && row < params.batch) {
            let moment = moment_of(params.first_step, row, direction);
            let unit = pair % HIDDEN;
            state[p].c = previous_c(moment, direction, row, unit);
            if (unit < STATE) {
                state[p].h = previous_h(moment, direction, row, unit);
                wg_h[b * BLOCKS * 8u + unit] = state[p].h;
            }
        }
    }

    for (var s = 0u; s < params.num_steps; s++) {
        // wg_h is visible, wg_gates is free
        workgroupBarrier();
        // pass 1: gates_h
        store_sums(lane, direction, 0u);
        // wg_gates is visible, wg_h is free
        workgroupBarrier();
        if (NUM_PHASES == 2u && !PROJECTED) {
            // unroll
            for (var p = 0u; p < PAIRS; p++) {
                let pair = lane.index + p * WORKGROUP_SIZE;
                let b = pair / HIDDEN;
                let row = row_start + b;
                if (b < BATCH && row < params.batch) {
                    let unit = pair % HIDDEN;
                    let moment = moment_of(params.first_step + s, row, direction);
                    if (moment.inside) {
                        let x = gates_x(moment, direction, row, unit);
                        let h = reset(direction, x, gates_h(b, unit), state[p].h);
                        wg_h[b * BLOCKS * 8u + unit] = h;
                    }
                }
            }
            // wg_h is visible
            workgroupBarrier();
            store_sums(lane, direction, 1u);
            // wg_gates is visible, wg_h is free
            workgroupBarrier();
        }
        // pass 2: the cells
        // unroll
        for (var p = 0u; p < PAIRS; p++) {
            let pair = lane.index + p * WORKGROUP_SIZE;
            let b = pair / HIDDEN;
            let row = row_start + b;
            if (b < BATCH && row < params.batch) {
                let unit = pair % HIDDEN;
                let moment = moment_of(params.first_step + s, row, direction);
                if (SAVE && !PROJECTED) {
                    save_h(moment, direction, row, unit, state[p].h);
                }
                if (moment.inside) {
                    let x = gates_x(moment, direction, row, unit);
                    let h = gates_h(b, unit);
                    let own = unit_weights(direction, unit);
                    if (SAVE) {
                        save(moment, direction, row, unit, x, h, own, state[p].c);
                    }
                    state[p] = cell(direction, x, h, own, state[p]);
                    if (!PROJECTED) {
                        wg_h[b * BLOCKS * 8u + unit] = state[p].h;
                    }
                } else if (SAVE) {
                    save_nothing(moment, direction, row, unit);
                }
                // between the steps of a dispatch nobody else reads it
                if (s + 1u == params.num_steps) {
                    store_c(moment, direction, row, unit, state[p].c);
                } else {
                    finish_c(moment, direction, row, unit, state[p].c);
                }
                if (PROJECTED) {
                    wg_gates[unprojected_at(b, unit)] = state[p].h;
                } else {
                    store_h(moment, direction, row, unit, state[p].h);
                }
            }
        }
        if (PROJECTED) {
            // wg_gates is visible, wg_h is free
            workgroupBarrier();
            for (var i = lane.index; i < BATCH * STATE; i += WORKGROUP_SIZE) {
                let b = i / STATE;
                let unit = i % STATE;
                let row = row_start + b;
                if (row < params.batch) {
                    let moment = moment_of(params.first_step + s, row, direction);
                    if (SAVE) {
                        save_h(moment, direction, row, unit, wg_h[b * BLOCKS * 8u + unit]);
                    }
                    if (moment.inside) {
                        wg_h[b * BLOCKS * 8u + unit] = projected(direction, b, unit);
                    }
                    store_h(moment, direction, row, unit, wg_h[b * BLOCKS * 8u + unit]);
                }
            }
        }
    }
}
