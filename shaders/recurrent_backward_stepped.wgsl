// recurrent_backward_stepped: one step of the reverse sweep of one layer, all directions and batch
// rows; launched once per step, or once per phase of a step, and once more at the end.
//
// Formulas in recurrent_backward_problem.wgsl and the cell's file. A launch multiplies the d_gates
// of the step behind, which the launch before has left, and then computes its own. Where a reset
// comes before the product, or h is projected, a second phase multiplies what the first one has
// left.
//
// Layout      see recurrent_backward_problem.wgsl
// Grid        one workgroup per UNITS units, BATCH rows and direction, folded to two dimensions
// Workgroup   UNITS * SPLIT invocations; invocation (u, s) sums every SPLIT-th vector of each
//             gate's block of weight_hh from s on, in the column of unit u, for all rows of the
//             tile
// Memory      wg_gates: the d_gates of the rows, K_VECTORS at a time; wg_partial: shares of sums
// Holds       any hidden_size; step number in group 1
// Precision   f32; each sum in an order fixed by the constants
// Parts       common.wgsl, recurrent_backward_problem.wgsl, recurrent_slopes_*.wgsl,
//             recurrent_backward_cell_*.wgsl, recurrent_shares.wgsl

const UNIT_SUMS: u32 = BATCH;

struct Step {
    index: u32,
}
@group(1) @binding(0) var<uniform> step: Step;

var<workgroup> wg_gates: array<vec4<f32>, BATCH * K_VECTORS>;

// whether a phase multiplies a gate's block; for the projection gate 0 stands
fn is_multiplied(second_phase: bool, gate: u32) -> bool {
    if (PROJECTED) {
        return !second_phase || gate == 0u;
    }
    return (NUM_PHASES == 1u) | ((gate == 2u) == second_phase);
}

fn weights_of(projecting: bool, direction: u32, k4: u32, gate: u32, unit: u32) -> vec4<f32> {
    if (PROJECTED && projecting) {
        return weight_hr(direction, k4, unit);
    }
    return weight_hh(direction, k4, gate, unit);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn recurrent_backward_stepped(
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
    let place = params.first_place + step.index / NUM_PHASES;
    let second_phase = step.index % NUM_PHASES == 1u;
    let projecting = PROJECTED && second_phase;
    // what is multiplied, and what comes of it
    let num_factors = select(params.hidden_size, params.state_size, projecting);
    let num_units = select(params.state_size, params.hidden_size, projecting);
    let unit = min(unit_start + lane % UNITS, num_units - 1u);
    let split = lane / UNITS;
    // the step whose d_gates are multiplied: in the second phase this one, else the one behind
    let behind = select(step_of(place) + 1u, step_of(place), second_phase);

    // pass 1: weight_hh^T d_gates, a share of the sum each
    var sum: array<f32, BATCH>;
    // unroll
    for (var b = 0u; b < BATCH; b++) {
        sum[b] = 0.0;
    }
    let num_vectors = (num_factors + 3u) / 4u;
    if (place > 0u || second_phase) {
        // unroll
        for (var gate = 0u; gate < NUM_GATES; gate++) {
            if (is_multiplied(second_phase, gate)) {
                for (var start = 0u; start < num_vectors; start += K_VECTORS) {
                    // wg_gates is free
                    workgroupBarrier();
                    for (var i = lane; i < BATCH * K_VECTORS; i += WORKGROUP_SIZE) {
                        let row = row_start + i / K_VECTORS;
                        var staged = vec4<f32>();
                        if (row < params.batch) {
                            let slot = product_slot(gate) * params.hidden_size;
                            let gates = grads_at(behind, direction, row) + slot;
                            let first = select(gates, dh_at(behind, direction, row), projecting);
                            // unroll
                            for (var c = 0u; c < 4u; c++) {
                                let k = 4u * (start + i % K_VECTORS) + c;
                                if (k < num_factors) {
                                    staged[c] = scratch[first + k];
                                }
                            }
                        }
                        wg_gates[i] = staged;
                    }
                    // wg_gates is visible
                    workgroupBarrier();
                    for (var k = split; k < min(K_VECTORS, num_vectors - start); k += SPLIT) {
                        let w = weights_of(projecting, direction, start + k, gate, unit);
                        // unroll
                        for (var b = 0u; b < BATCH; b++) {
                            sum[b] = add_dot(w, wg_gates[b * K_VECTORS + k], sum[b]);
                        }
                    }
                }
            }
        }
    }
    // unroll
    for (var b = 0u; b < BATCH; b++) {
        wg_partial[lane * BATCH + b] = sum[b];
    }
    add_shares(lane);

    // pass 2: one invocation per unit and row computes the cell's gradients
    for (var i = lane; i < UNITS * BATCH; i += WORKGROUP_SIZE) {
        let row = row_start + i / UNITS;
        let own_unit = unit_start + i % UNITS;
        if (row >= params.batch || own_unit >= num_units) {
            continue;
        }
        let product = wg_partial[i % UNITS * BATCH + i / UNITS];
        let own_step = step_of(place);
        let inside = place < params.piece_steps
            && time_of(own_step, direction) < length_of(row);
        let at = carry_h_at(direction, row, own_unit);
        if (second_phase && !PROJECTED) {
            if (inside) {
                let saved = saved_of(own_step, direction, row, own_unit);
                let reset = reset_backward(direction, saved, product);
                scratch[grads_at(own_step, direction, row) + own_unit] = reset[0];
                scratch[at] += reset[1];
            }
            continue;
        }
        let carried = place > 0u || has(HAS_CARRY);
        let cut = inside && is_cut(own_step, direction, row);
        var gradient = Gradient();
        var dh = product;
        if (!second_phase) {
            if (carried) {
                dh += scratch[at];
            }
            gradient.h = dh;
            if (cut) {
                dh = 0.0;
            }
            if (inside) {
                dh += output_gradient(own_step, direction, row, own_unit);
            }
            if (place < params.piece_steps) {
                store_dh(own_step, direction, row, own_unit, select(0.0, dh, inside));
            }
            if (PROJECTED) {
                // all of it goes through the cell
                scratch[at] = select(dh, 0.0, inside);
                continue;
            }
        }
        if (HAS_CELL && carried && !cut) {
            gradient.c = scratch[carry_c_at(direction, row, own_unit)];
        }
        if (inside) {
            let saved = saved_of(own_step, direction, row, own_unit);
            let own = unit_weights(direction, own_unit);
            gradient = cell_backward(direction, saved, own, dh, gradient.c);
        }
        if (place < params.piece_steps) {
            store_gradient(own_step, direction, row, own_unit, gradient);
        }
        if (!PROJECTED) {
            scratch[at] = gradient.h;
        }
        if (HAS_CELL) {
            scratch[carry_c_at(direction, row, own_unit)] = gradient.c;
        }
    }
}
