// scan_problem: parameters and index arithmetic of the kernels of a first-order linear recurrence.
//
// Each lane, one element of a row of the batch, follows by itself
//     state_t = a_t state_(t-1) + b_t
// The steps are cut into chunks. scan_reduce makes one step of all of a chunk's, scan_carry goes
// from chunk to chunk with these and leaves the state before each, scan_apply goes through the
// steps of all chunks at once. What a_t and b_t are, and what becomes of a state, says the part
// with the bindings, by these names:
//     Step                            what is read of a step
//     load(place) -> Step             of a place within the sequence
//     identity() -> Step              one that leaves the state as it is
//     affine(step) -> Affine          its a and b
//     emit(place, step, before, after)  writes the results of a step
//     initial(lane) -> f32            the state before the only chunk
//     finish(lane, state)             takes the state behind the last chunk
// Source: Blelloch 1990, Prefix sums and their applications.
//
// Layout
//     scratch   from scratch_first on: state [lanes], for the next call on the same sequence;
//               h_0 [lanes]; then of each chunk [num_chunks, lanes] a, which scan_carry replaces by
//               the state before, and [num_chunks, lanes] b
//     lengths   [batch]

struct Params {
    // elements of a step; rounded up so that no vector of invocations spans two chunks
    lanes: u32,
    padded_lanes: u32,
    width: u32,
    seq_len: u32,
    // the steps of this launch, numbered in the order in which they follow each other
    first_step: u32,
    num_steps: u32,
    chunk_len: u32,
    num_chunks: u32,
    flags: u32,
    // time of the first element of the tensors [seq_len, ..], and of the one with states before
    window_time: u32,
    previous_time: u32,
    scratch_first: u32,
    start_first: u32,
    a_first: u32,
    b_first: u32,
    h_0_first: u32,
    output_first: u32,
    h_n_first: u32,
    grad_output_first: u32,
    grad_a_first: u32,
    grad_b_first: u32,
}

const HAS_INITIAL: u32 = 1u;
const FROM_SCRATCH: u32 = 2u;
const WRITE_FINAL: u32 = 4u;
const TO_SCRATCH: u32 = 8u;
const KEEP_H_0: u32 = 16u;
// later times come first
const REVERSE: u32 = 32u;

fn has(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

// A step of a lane.
struct Place {
    time: u32,
    lane: u32,
    // of the lane's own sequence
    length: u32,
    inside: bool,
}

fn place_of(step: u32, lane: u32, length: u32) -> Place {
    let forward = params.first_step + step;
    let time = select(forward, params.seq_len - 1u - forward, has(REVERSE));
    return Place(time, lane, length, !LENGTHS || time < length);
}

// element of [seq_len, lanes] in what is bound
fn index_of(place: Place) -> u32 {
    return (place.time - params.window_time) * params.lanes + place.lane;
}

fn length_of(lane: u32) -> u32 {
    if (LENGTHS) {
        return min(lengths[lane / params.width], params.seq_len);
    }
    return params.seq_len;
}

fn state_at(lane: u32) -> u32 {
    return params.scratch_first + lane;
}

fn kept_h_0_at(lane: u32) -> u32 {
    return params.scratch_first + params.lanes + lane;
}

fn carry_at(chunk: u32, lane: u32) -> u32 {
    return params.scratch_first + (2u + chunk) * params.lanes + lane;
}

fn total_b_at(chunk: u32, lane: u32) -> u32 {
    return carry_at(params.num_chunks + chunk, lane);
}

// x -> a x + b
struct Affine {
    a: f32,
    b: f32,
}
