// recurrent_exchange: what workgroups of recurrent_persistent.wgsl hand to each other, in words
// that say by themselves whether they are there.

// all ones: the one word whose complement would say that it is not there. It is a NaN
const ALL_ONES: u32 = 0xffffffffu;
const QUIET_NAN: u32 = 0x7fc00000u;

// whether some invocation has waited too long
var<workgroup> wg_unanswered: atomic<u32>;

// where a workgroup works
struct Place {
    direction: u32,
    row_start: u32,
    unit_start: u32,
    // among those of the dispatch: which rows and direction
    group: u32,
}

fn handed_at(direction: u32, step: u32, phase: u32, row: u32, unit: u32) -> u32 {
    let groups = params.num_groups / params.unit_tiles;
    let first = params.exchange_first + (groups + 63u) / 64u * 64u;
    let part = (direction - params.direction) * params.num_steps + step - params.first_step;
    let at = ((part * NUM_PHASES + phase) * params.batch + row) * params.hidden_size + unit;
    return first + at;
}

fn hand_on(at: u32, x: f32) {
    let bits = bitcast<u32>(x);
    atomicStore(&scratch[at], ~select(bits, QUIET_NAN, bits == ALL_ONES));
}

// what another invocation hands on, of which a first look has found word; 0 if it does not come
fn receive(at: u32, first_look: u32, group: u32) -> f32 {
    var word = first_look;
    // once at least: who stops must have missed a word that was not there
    for (var i = 0u; word == 0u && i <= params.spin_bound; i++) {
        // a load may be answered from a cache that nobody refreshes
        word = atomicOr(&scratch[at], 0u);
        if (word == 0u && atomicLoad(&scratch[params.exchange_first + group]) != 0u) {
            break;
        }
    }
    if (word == 0u) {
        atomicStore(&wg_unanswered, 1u);
        return 0.0;
    }
    return bitcast<f32>(~word);
}

// four, or as many as there are, of what the rows of the matrix are multiplied with: h, in the
// second phase what the first has left
fn factors(step: u32, phase: u32, place: Place, row: u32, unit: u32, count: u32) -> vec4<f32> {
    let moment = moment_of(step, row, place.direction);
    var all = vec4<f32>();
    // before the first step of the dispatch, and of the sequence, nothing is handed on
    if (phase == 0u && (moment.first || !moment.inside || step == params.first_step)) {
        // unroll
        for (var c = 0u; c < 4u; c++) {
            if (c < count) {
                all[c] = previous_h(moment, place.direction, row, unit + c);
            }
        }
        return all;
    }
    let from_step = step - select(1u, 0u, phase == 1u);
    let from_phase = select(NUM_PHASES - 1u, 0u, phase == 1u);
    let first = handed_at(place.direction, from_step, from_phase, row, unit);
    if (count > 0u) {
        all.x = receive(first, atomicLoad(&scratch[first]), place.group);
    }
    // one workgroup handed them on: the others are there, too, and on their way together
    var words = vec4<u32>();
    // unroll
    for (var c = 0u; c < 4u; c++) {
        if (c > 0u && c < count) {
            words[c] = atomicLoad(&scratch[first + c]);
        }
    }
    // unroll
    for (var c = 0u; c < 4u; c++) {
        if (c > 0u && c < count) {
            all[c] = receive(first + c, words[c], place.group);
        }
    }
    return all;
}
