// recurrent_persistent: all steps of one layer in one dispatch; several workgroups share the units
// of each sequence, and each keeps its part of weight_hh.
//
// Formulas in recurrent_problem.wgsl and the cell's file. What a phase of a step leaves to the next
// phase or step travels from workgroup to workgroup in words of its own: nothing but the word
// itself says whether it is there, 0 that it is not, and no word is used twice. One that waits too
// long, since the others may not run at the same time, marks the step at which it stopped and
// returns; so do then the others of its sequences. With RESUME, one workgroup takes over from the
// first step so marked and runs the parts of all, with the same sums in the same order: the result
// is the same bit for bit, whether and wherever a workgroup gave up.
//     A workgroup takes ROUNDS tiles of rows in turn, each independent of the others: while it
// computes one, what the next ones wait for arrives.
//     The words in which c lies alternate from step to step: workgroups are at most one step apart,
// and the c before the first step that is missing somewhere is still there.
// Source: Diamos et al. 2016, Persistent RNNs, for spinning with a bound and beginning again.
//
// Layout      see recurrent_problem.wgsl; scratch holds two times c, and from exchange_first on
//             stopped [num_directions of the dispatch, batch_tiles], 0 or ~step, then at the next
//             multiple of 64 handed [num_directions of the dispatch, num_steps, NUM_PHASES, batch,
//             hidden_size], ~bits of what the phase after multiplies
// Grid        one workgroup per UNITS units, ROUNDS times BATCH rows and direction; with RESUME,
//             where ROUNDS is 1, one per BATCH rows and direction; folded to two dimensions
// Workgroup   UNITS * SPLIT invocations; invocation (u, s) sums every SPLIT-th vector of weight_hh
//             from s on, for all gates of unit u and all rows of the tile
// Memory      wg_h: what the rows multiply, wg_partial: shares of the sums, two words
// Holds       K_VECTORS * 4 >= hidden_size; VECTORS * SPLIT * 4 >= state_size if HELD; stopped and
//             handed are 0 before the first dispatch of some steps
// Precision   f32; each sum in an order fixed by the constants
// Parts       common.wgsl, recurrent_memory_atomic.wgsl, recurrent_problem.wgsl,
//             recurrent_cell_*.wgsl, recurrent_exchange.wgsl, recurrent_shares.wgsl,
//             recurrent_persistent_sums.wgsl

// of each unit: [BATCH, NUM_GATES]
const UNIT_SUMS: u32 = BATCH * NUM_GATES;
// of GruResetBefore
const Z: u32 = FIRST_GATES - 1u;

var<workgroup> wg_h: array<vec4<f32>, BATCH * K_VECTORS>;
// with RESUME, where to begin
var<workgroup> wg_stopped: u32;

// with HELD, the weights of the first phase, loaded once
var<private> held: array<array<vec4<f32>, VECTORS>, NUM_GATES>;

// where c lies after a step
fn c_at(step: u32, direction: u32, row: u32, unit: u32) -> u32 {
    return cell_at(step % 2u * params.num_directions + direction, row, unit);
}

// pass 2: one invocation per unit and row computes the cell
fn finish(i: u32, step: u32, phase: u32, place: Place) {
    let row = place.row_start + i / UNITS;
    let unit = place.unit_start + i % UNITS;
    if (row >= params.batch || unit >= num_units(phase)) {
        return;
    }
    var sums: array<f32, NUM_GATES>;
    // unroll
    for (var g = 0u; g < NUM_GATES; g++) {
        sums[g] = wg_partial[i % UNITS * UNIT_SUMS + i / UNITS * NUM_GATES + g];
    }
    let direction = place.direction;
    let moment = moment_of(step, row, direction);
    let handed = handed_at(direction, step, phase, row, unit);
    if (PROJECTED && phase == 1u) {
        let h = select(previous_h(moment, direction, row, unit), sums[0], moment.inside);
        store_h(moment, direction, row, unit, h);
        hand_on(handed, h);
        return;
    }
    var state = State(0.0, 0.0);
    if (unit < params.state_size) {
        state.h = previous_h(moment, direction, row, unit);
    }
    if (HAS_CELL) {
        state.c = initial_c(direction, row, unit);
        if (moment.inside && !moment.first) {
            state.c = scratch_at(c_at(step + 1u, direction, row, unit));
        }
    }
    if (NUM_PHASES == 2u && !PROJECTED && phase == 0u) {
        set_scratch(cell_at(direction, row, unit), sums[Z]);
        var rh = 0.0;
        if (moment.inside) {
            rh = reset(direction, gates_x(moment, direction, row, unit), sums, state.h);
        }
        hand_on(handed, rh);
        return;
    }
    if (moment.inside) {
        if (NUM_PHASES == 2u && !PROJECTED) {
            sums[Z] = scratch_at(cell_at(direction, row, unit));
        }
        let x = gates_x(moment, direction, row, unit);
        state = cell(direction, x, sums, unit_weights(direction, unit), state);
        if (HAS_CELL) {
            set_scratch(c_at(step, direction, row, unit), state.c);
        }
    }
    finish_c(moment, direction, row, unit, state.c);
    if (!PROJECTED) {
        store_h(moment, direction, row, unit, state.h);
    }
    hand_on(handed, state.h);
}

// marks the first step that is missing somewhere of each round
fn give_up(step: u32, phase: u32, first_group: u32, round: u32, rounds: u32) {
    for (var r = 0u; r < rounds; r++) {
        // the rounds before have done this phase
        let done = r < round && phase + 1u == NUM_PHASES;
        let missing = step + select(0u, 1u, done);
        atomicMax(&scratch[params.exchange_first + first_group + r], ~missing);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn recurrent_persistent(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let index = workgroup.x + workgroup.y * num_workgroups.x;
    // the parts that this workgroup runs
    let tiles = select(1u, params.unit_tiles, RESUME);
    let groups = params.num_groups / params.unit_tiles;
    let first_tile = index % (params.unit_tiles / tiles);
    // of its direction, and of its rows among all of that
    let turns = (params.batch_tiles + ROUNDS - 1u) / ROUNDS;
    let turn = index / (params.unit_tiles / tiles);
    let first_group = turn / turns * params.batch_tiles + turn % turns * ROUNDS;
    if (first_group >= groups) {
        return;
    }
    let rounds = min(ROUNDS, params.batch_tiles - turn % turns * ROUNDS);
    var place = Place();
    place.direction = params.direction + turn / turns;
    place.unit_start = first_tile * UNITS;
    var first_step = params.first_step;
    if (lane == 0u) {
        atomicStore(&wg_unanswered, 0u);
        wg_stopped = atomicLoad(&scratch[params.exchange_first + first_group]);
    }
    if (RESUME) {
        let stopped = workgroupUniformLoad(&wg_stopped);
        if (stopped == 0u) {
            return;
        }
        first_step = ~stopped;
    }
    if (HELD) {
        let unit = min(place.unit_start + lane % UNITS, params.hidden_size - 1u);
        // unroll
        for (var v = 0u; v < VECTORS; v++) {
            // unroll
            for (var g = 0u; g < NUM_GATES; g++) {
                let k = min(lane / UNITS + v * SPLIT, (params.state_size + 3u) / 4u - 1u);
                held[g][v] = weights_of(0u, place.direction, k, g, unit);
            }
        }
    }

    for (var step = first_step; step < params.first_step + params.num_steps; step++) {
        for (var phase = 0u; phase < NUM_PHASES; phase++) {
            if (first_tile * UNITS >= num_units(phase)) {
                // no part in a projection, and no reason to wait for it
                continue;
            }
            for (var round = 0u; round < rounds; round++) {
                place.group = first_group + round;
                place.row_start = place.group % params.batch_tiles * BATCH;
                // wg_h is free
                workgroupBarrier();
                stage(lane, step, phase, place);
                // a barrier, too: wg_h is visible
                if (workgroupUniformLoad(&wg_unanswered) != 0u) {
                    if (lane == 0u) {
                        give_up(step, phase, first_group, round, rounds);
                    }
                    return;
                }
                for (var tile = 0u; tile < tiles; tile++) {
                    place.unit_start = (first_tile + tile) * UNITS;
                    if (place.unit_start < num_units(phase)) {
                        // wg_partial is free
                        workgroupBarrier();
                        share_of_sums(lane, phase, place);
                        add_shares(lane);
                        for (var i = lane; i < UNITS * BATCH; i += WORKGROUP_SIZE) {
                            finish(i, step, phase, place);
                        }
                    }
                }
            }
            if (RESUME) {
                // what this workgroup handed on is visible to itself
                storageBarrier();
            }
        }
    }
}
