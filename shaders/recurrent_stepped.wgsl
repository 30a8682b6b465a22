// recurrent_stepped: one step of one layer, all directions and batch rows; launched once per step,
// or once per phase of a step.
//
// Formulas in recurrent_problem.wgsl and the cell's file.
//
// Layout      see recurrent_problem.wgsl
// Grid        one workgroup per UNITS units, BATCH rows and direction, folded to two dimensions
// Workgroup   UNITS * SPLIT invocations; invocation (u, s) sums every SPLIT-th vector of weight_hh
//             from s on, for all gates of unit u and all rows of the tile
// Memory      wg_h: the previous h of the rows, K_VECTORS at a time; wg_partial: shares of the sums
// Holds       any hidden_size; step number in group 1
// Precision   f32; each sum in an order fixed by the constants
// Parts       common.wgsl, recurrent_memory.wgsl, recurrent_problem.wgsl, recurrent_save.wgsl,
//             recurrent_cell_*.wgsl, recurrent_shares.wgsl

// of each unit: [BATCH, NUM_GATES]
const UNIT_SUMS: u32 = BATCH * NUM_GATES;
// of two phases, the first one's gate that the second one needs
const Z: u32 = FIRST_GATES - 1u;

struct Step {
    index: u32,
}
@group(1) @binding(0) var<uniform> step: Step;

var<workgroup> wg_h: array<vec4<f32>, BATCH * K_VECTORS>;

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

@compute @workgroup_size(WORKGROUP_SIZE)
fn recurrent_stepped(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let unit_start = group % params.unit_tiles * UNITS;
    let row_start = group / params.unit_tiles % params.batch_tiles * BATCH;
    let direction = params.direction + group / params.unit_tiles / params.batch_tiles;
    let step_index = params.first_step + step.index / NUM_PHASES;
    let second_phase = step.index % NUM_PHASES == 1u;
    // a projection has units of its own, fewer of them
    let projecting = PROJECTED && second_phase;
    let num_units = select(params.hidden_size, params.state_size, projecting);
    let num_factors = select(params.state_size, params.hidden_size, second_phase);
    if (unit_start >= num_units) {
        return;
    }
    let unit = min(unit_start + lane % UNITS, num_units - 1u);
    let split = lane / UNITS;

    // pass 1: gates_h, a share of the sum each
    var sum: array<array<f32, NUM_GATES>, BATCH>;
    // unroll
    for (var b = 0u; b < BATCH; b++) {
        // unroll
        for (var g = 0u; g < NUM_GATES; g++) {
            sum[b][g] = 0.0;
        }
    }
    let num_vectors = (num_factors + 3u) / 4u;
    for (var start = 0u; start < num_vectors; start += K_VECTORS) {
        // wg_h is free
        workgroupBarrier();
        for (var i = lane; i < BATCH * K_VECTORS; i += WORKGROUP_SIZE) {
            let row = row_start + i / K_VECTORS;
            var staged = vec4<f32>();
            if (row < params.batch) {
                let moment = moment_of(step_index, row, direction);
                // unroll
                for (var c = 0u; c < 4u; c++) {
                    let k = 4u * (start + i % K_VECTORS) + c;
                    if (k < num_factors) {
                        staged[c] = factor(second_phase, moment, direction, row, k);
                    }
                }
            }
            wg_h[i] = staged;
        }
        // wg_h is visible
        workgroupBarrier();
        for (var k = split; k < min(K_VECTORS, num_vectors - start); k += SPLIT) {
            // unroll
            for (var g = 0u; g < NUM_GATES; g++) {
                if (is_summed(second_phase, g)) {
                    let w = weights_of(second_phase, direction, start + k, g, unit);
                    // unroll
                    for (var b = 0u; b < BATCH; b++) {
                        sum[b][g] = add_dot(w, wg_h[b * K_VECTORS + k], sum[b][g]);
                    }
                }
            }
        }
    }
    // unroll
    for (var b = 0u; b < BATCH; b++) {
        // unroll
        for (var g = 0u; g < NUM_GATES; g++) {
            wg_partial[lane * UNIT_SUMS + b * NUM_GATES + g] = sum[b][g];
        }
    }
    add_shares(lane);

    // pass 2: one invocation per unit and row computes the cell
    for (var i = lane; i < UNITS * BATCH; i += WORKGROUP_SIZE) {
        let row = row_start + i / UNITS;
        let own_unit = unit_start + i % UNITS;
        if (row < params.batch && own_unit < num_units) {
            var gates_h: array<f32, NUM_GATES>;
            // unroll
            for (var g = 0u; g < NUM_GATES; g++) {
                gates_h[g] = wg_partial[i % UNITS * UNIT_SUMS + i / UNITS * NUM_GATES + g];
            }
            let moment = moment_of(step_index, row, direction);
            if (projecting) {
                let h = previous_h(moment, direction, row, own_unit);
                if (SAVE) {
                    save_h(moment, direction, row, own_unit, h);
                }
                store_h(moment, direction, row, own_unit, select(h, gates_h[0], moment.inside));
                continue;
            }
            var state = State(0.0, previous_c(moment, direction, row, own_unit));
            if (!PROJECTED) {
                state.h = previous_h(moment, direction, row, own_unit);
            }
            if (SAVE && !PROJECTED) {
                save_h(moment, direction, row, own_unit, state.h);
            }
            if (moment.inside) {
                let x = gates_x(moment, direction, row, own_unit);
                if (NUM_PHASES == 2u && !PROJECTED) {
                    let sum_z = cell_at(direction, row, own_unit);
                    if (!second_phase) {
                        let rh = reset(direction, x, gates_h, state.h);
                        set_scratch(factor_at(direction, row, own_unit), rh);
                        set_scratch(sum_z, gates_h[Z]);
                        if (SAVE) {
                            // what the second phase finds in the place of x_r, and adds 0 to
                            let sum_r = gates_at(moment, direction, row) + own_unit;
                            set_scratch(sum_r, x[0] + gates_h[0]);
                        }
                        continue;
                    }
                    gates_h[Z] = scratch_at(sum_z);
                }
                let own = unit_weights(direction, own_unit);
                if (SAVE) {
                    save(moment, direction, row, own_unit, x, gates_h, own, state.c);
                }
                state = cell(direction, x, gates_h, own, state);
            } else if (SAVE) {
                save_nothing(moment, direction, row, own_unit);
            }
            store_c(moment, direction, row, own_unit, state.c);
            if (PROJECTED) {
                set_scratch(factor_at(direction, row, own_unit), state.h);
            } else {
                store_h(moment, direction, row, own_unit, state.h);
            }
        }
    }
}
