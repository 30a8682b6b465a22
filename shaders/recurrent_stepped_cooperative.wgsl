// recurrent_stepped_cooperative: pass 1 of recurrent_stepped.wgsl by the device's matrix units.
//
//     gates_h[row, column] = sum over k of h[row, k] weight[column, k]
// for the EDGE rows of a tile and COLUMNS columns, number g * UNITS + u of which is gate g of unit
// u. K_CHUNK factors at a time are staged; of these each of SUBGROUPS subgroups multiplies its own
// SUBGROUP_K, and what they have is added in their order.
//
// A factor x is two halves, high = f16(x) and low = f16(LOW (x - high)): 22 bits from 2^-14 on, to
// 2^-36 below.
// Of the products of two factors that of the low halves is left out, 2^-22 of the whole:
//     x y = high high + (high low + low high) / LOW
// Source: Markidis et al. 2018; Ootomo and Yokota 2022, for the scale of the low half.
//
// Memory      wg_factors, wg_weights: a chunk of either, high and low, rows as long as lets those
//             of a matrix lie in different banks; wg_sums: what each subgroup has
// Holds       the subgroup size is a constant of the device; BATCH == EDGE divides COLUMNS;
//             SUBGROUP_K is a multiple of EDGE; of the vectors of a chunk an invocation stages
//             FACTOR_ITEMS and WEIGHT_ITEMS
// Precision   f32 within the range of f16: a state or weight beyond 65504 makes sums that are not
//             finite

const WORKGROUP_SIZE: u32 = SUBGROUPS * SUBGROUP_SIZE;
const COLUMNS: u32 = UNITS * NUM_GATES;
const K_CHUNK: u32 = SUBGROUPS * SUBGROUP_K;
const CHUNK_VECTORS: u32 = K_CHUNK / 4u;
const PITCH: u32 = K_CHUNK + 8u;
const SUM_PITCH: u32 = EDGE + 4u;
const SUBGROUP_SUMS: u32 = COLUMNS * SUM_PITCH;
// where the low halves begin
const LOW_FACTORS: u32 = BATCH * PITCH;
const LOW_WEIGHTS: u32 = COLUMNS * PITCH;
const LOW: f32 = 2048.0;

var<workgroup> wg_factors: array<f16, 2u * LOW_FACTORS>;
var<workgroup> wg_weights: array<f16, 2u * LOW_WEIGHTS>;
// [SUBGROUPS, COLUMN_TILES, EDGE, SUM_PITCH]
var<workgroup> wg_sums: array<f32, SUBGROUPS * SUBGROUP_SUMS>;

const_assert BATCH == EDGE && COLUMN_TILES * EDGE == COLUMNS;
const_assert FACTOR_ITEMS * WORKGROUP_SIZE >= BATCH * CHUNK_VECTORS;
const_assert WEIGHT_ITEMS * WORKGROUP_SIZE >= COLUMNS * CHUNK_VECTORS;

struct Chunk {
    factors: array<vec4<f32>, FACTOR_ITEMS>,
    weights: array<vec4<f32>, WEIGHT_ITEMS>,
}

// vector i of a chunk of the weights: neighbours are units
fn weight_item(sums: Sums, start: u32, i: u32) -> vec4<f32> {
    let g = i / UNITS % NUM_GATES;
    let k4 = start / 4u + i / COLUMNS;
    let unit = sums.unit_start + i % UNITS;
    if (unit < sums.num_units && 4u * k4 < sums.num_factors && is_summed(sums.second_phase, g)) {
        return weights_of(sums.second_phase, sums.direction, k4, g, unit);
    }
    return vec4<f32>();
}

fn load_chunk(lane: u32, sums: Sums, start: u32) -> Chunk {
    var result: Chunk;
    // unroll
    for (var n = 0u; n < FACTOR_ITEMS; n++) {
        let i = lane + n * WORKGROUP_SIZE;
        let row = sums.row_start + i / CHUNK_VECTORS;
        result.factors[n] = factors_of(sums, row, start + 4u * (i % CHUNK_VECTORS));
    }
    // unroll
    for (var n = 0u; n < WEIGHT_ITEMS; n++) {
        result.weights[n] = weight_item(sums, start, lane + n * WORKGROUP_SIZE);
    }
    return result;
}

// x in 11 bits or, where f16 has fewer, in steps of 2^-24: by its bits, since a compiler may take a
// conversion there and back for none
fn high_of(x: vec4<f32>) -> vec4<f32> {
    let normal = bitcast<vec4<f32>>((bitcast<vec4<u32>>(x) + 0x1000u) & vec4<u32>(0xffffe000u));
    let subnormal = round(x * 16777216.0) / 16777216.0;
    return select(normal, subnormal, abs(x) < vec4<f32>(6.103515625e-5));
}

struct Halves {
    high: vec4<f16>,
    low: vec4<f16>,
}

fn halves_of(x: vec4<f32>) -> Halves {
    let high = high_of(x);
    return Halves(vec4<f16>(high), vec4<f16>(LOW * (x - high)));
}

fn store_chunk(lane: u32, chunk: Chunk) {
    // unroll
    for (var n = 0u; n < FACTOR_ITEMS; n++) {
        let i = lane + n * WORKGROUP_SIZE;
        if (i < BATCH * CHUNK_VECTORS) {
            let at = i / CHUNK_VECTORS * PITCH + 4u * (i % CHUNK_VECTORS);
            let halves = halves_of(chunk.factors[n]);
            // unroll
            for (var e = 0u; e < 4u; e++) {
                wg_factors[at + e] = halves.high[e];
                wg_factors[LOW_FACTORS + at + e] = halves.low[e];
            }
        }
    }
    // unroll
    for (var n = 0u; n < WEIGHT_ITEMS; n++) {
        let i = lane + n * WORKGROUP_SIZE;
        if (i < COLUMNS * CHUNK_VECTORS) {
            let at = i % COLUMNS * PITCH + 4u * (i / COLUMNS);
            let halves = halves_of(chunk.weights[n]);
            // unroll
            for (var e = 0u; e < 4u; e++) {
                wg_weights[at + e] = halves.high[e];
                wg_weights[LOW_WEIGHTS + at + e] = halves.low[e];
            }
        }
    }
}

@diagnostic(off, derivative_uniformity)
fn sum_gates(lane: u32, sums: Sums) {
    let subgroup = lane / SUBGROUP_SIZE;
    var sum: array<Sum, COLUMN_TILES>;
    var low_sum: array<Sum, COLUMN_TILES>;
    // unroll
    for (var c = 0u; c < COLUMN_TILES; c++) {
        sum[c] = Sum();
        low_sum[c] = Sum();
    }
    var next = load_chunk(lane, sums, 0u);
    for (var start = 0u; start < sums.num_factors; start += K_CHUNK) {
        // wg_factors and wg_weights are free
        workgroupBarrier();
        store_chunk(lane, next);
        // wg_factors and wg_weights are visible
        workgroupBarrier();
        next = load_chunk(lane, sums, start + K_CHUNK);
        for (var k = 0u; k < SUBGROUP_K; k += EDGE) {
            let at = subgroup * SUBGROUP_K + k;
            let left = coopLoadT<Left>(&wg_factors[at], PITCH);
            let low_left = coopLoadT<Left>(&wg_factors[LOW_FACTORS + at], PITCH);
            // unroll
            for (var c = 0u; c < COLUMN_TILES; c++) {
                // the weights of a column are a row here
                let column = c * EDGE * PITCH + at;
                let right = coopLoad<Right>(&wg_weights[column], PITCH);
                let low_right = coopLoad<Right>(&wg_weights[LOW_WEIGHTS + column], PITCH);
                sum[c] = coopMultiplyAdd(left, right, sum[c]);
                low_sum[c] = coopMultiplyAdd(left, low_right, low_sum[c]);
                low_sum[c] = coopMultiplyAdd(low_left, right, low_sum[c]);
            }
        }
    }
    // unroll
    for (var c = 0u; c < COLUMN_TILES; c++) {
        let at = subgroup * SUBGROUP_SUMS + c * EDGE * SUM_PITCH;
        let whole = sum[c] + low_sum[c] * (1.0 / LOW);
        coopStoreT(whole, &wg_sums[at], SUM_PITCH);
    }
    // wg_sums is visible
    workgroupBarrier();
}

fn gate_sum(unit: u32, row: u32, g: u32) -> f32 {
    let column = g * UNITS + unit;
    let at = (column / EDGE * EDGE + row) * SUM_PITCH + column % EDGE;
    var result = wg_sums[at];
    for (var s = 1u; s < SUBGROUPS; s++) {
        result += wg_sums[s * SUBGROUP_SUMS + at];
    }
    return result;
}
