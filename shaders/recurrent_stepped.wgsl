// recurrent_stepped: one step of one layer, all directions and batch rows; launched once per step,
// or once per phase of a step.
//
// Formulas in recurrent_problem.wgsl and the cell's file.
//
// Layout      see recurrent_problem.wgsl
// Grid        one workgroup per UNITS units, BATCH rows and direction, folded to two dimensions
// Workgroup   WORKGROUP_SIZE invocations, which share the sums as one of the last parts says
// Memory      that of that part
// Holds       any hidden_size; step number in group 1
// Precision   f32; each sum in an order fixed by the constants
// Parts       common.wgsl, recurrent_memory.wgsl, recurrent_problem.wgsl, recurrent_save.wgsl,
//             recurrent_cell_*.wgsl, recurrent_stepped_factors.wgsl; recurrent_shares.wgsl and
//             recurrent_stepped_sums.wgsl, or cooperative_*.wgsl and
//             recurrent_stepped_cooperative.wgsl

// of two phases, the first one's gate that the second one needs
const Z: u32 = FIRST_GATES - 1u;

struct Step {
    index: u32,
}
@group(1) @binding(0) var<uniform> step: Step;

@diagnostic(off, derivative_uniformity)
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

    // pass 1: gates_h
    let sums = Sums(
        step_index, second_phase, direction, row_start, unit_start, num_units, num_factors,
    );
    sum_gates(lane, sums);

    // pass 2: one invocation per unit and row computes the cell
    for (var i = lane; i < UNITS * BATCH; i += WORKGROUP_SIZE) {
        let row = row_start + i / UNITS;
        let own_unit = unit_start + i % UNITS;
        if (row < params.batch && own_unit < num_units) {
            var gates_h: array<f32, NUM_GATES>;
            // unroll
            for (var g = 0u; g < NUM_GATES; g++) {
                gates_h[g] = gate_sum(i % UNITS, i / UNITS, g);
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
