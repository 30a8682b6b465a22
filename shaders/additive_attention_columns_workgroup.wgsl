// additive_attention_columns_workgroup: the terms and values of COLUMNS columns for all
// invocations, through workgroup memory. Same names as additive_attention_columns_subgroup.wgsl.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

// exp(2 term) [CHUNK, COLUMNS], values [VALUE_CHUNK, COLUMNS], as vectors of four columns
const COLUMN_VECTORS: u32 = COLUMNS / 4u;
var<workgroup> wg_terms: array<vec4<f32>, CHUNK * COLUMN_VECTORS>;
var<workgroup> wg_values: array<vec4<f32>, VALUE_CHUNK * COLUMN_VECTORS>;
// the last stage, counted from 1, in which some term was out of bounds
var<workgroup> wg_wild: atomic<u32>;
var<private> stage_number: u32;

// past the end the last column is repeated; it is masked
fn column_at(tile: Tile, column: u32) -> u32 {
    return min(column, tile.column_end - 1u);
}

// Whether any term of this chunk, the rows' included, is out of the bounds of the factored form.
fn stage_terms(
    lane: Lane, tile: Tile, column_start: u32, chunk: u32, clean: bool, wild_rows: bool,
) -> bool {
    stage_number += 1u;
    if (stage_number == 1u && lane.index == 0u) {
        atomicStore(&wg_wild, 0u);
    }
    // wg_terms is free, wg_wild is 0 in the first stage
    workgroupBarrier();
    var wild = wild_rows;
    for (var i = lane.index; i < CHUNK * COLUMN_VECTORS; i += WORKGROUP_SIZE) {
        let d = chunk + i / COLUMN_VECTORS;
        let column = column_start + i % COLUMN_VECTORS * 4u;
        let x = vec4<f32>(
            term_of_column(tile, column_at(tile, column), d, clean),
            term_of_column(tile, column_at(tile, column + 1u), d, clean),
            term_of_column(tile, column_at(tile, column + 2u), d, clean),
            term_of_column(tile, column_at(tile, column + 3u), d, clean),
        );
        wild = wild || any(abs(x) > vec4<f32>(FACTORED_BOUND));
        wg_terms[i] = exp2(TWO_LOG2_E * x);
    }
    if (wild) {
        atomicStore(&wg_wild, stage_number);
    }
    // wg_terms and wg_wild are visible
    workgroupBarrier();
    return atomicLoad(&wg_wild) == stage_number;
}

fn terms_at(d: u32) -> array<f32, COLUMNS> {
    var all: array<f32, COLUMNS>;
    // unroll
    for (var m = 0u; m < COLUMN_QUADS; m++) {
        let four = wg_terms[d * COLUMN_VECTORS + m];
        all[4u * m] = four.x;
        all[4u * m + 1u] = four.y;
        all[4u * m + 2u] = four.z;
        all[4u * m + 3u] = four.w;
    }
    return all;
}

fn stage_values(lane: Lane, tile: Tile, column_start: u32, first: u32) {
    // wg_values is free
    workgroupBarrier();
    for (var i = lane.index; i < VALUE_CHUNK * COLUMN_VECTORS; i += WORKGROUP_SIZE) {
        let c = first + i / COLUMN_VECTORS;
        let column = column_start + i % COLUMN_VECTORS * 4u;
        wg_values[i] = vec4<f32>(
            value_of_column(tile, column_at(tile, column), c),
            value_of_column(tile, column_at(tile, column + 1u), c),
            value_of_column(tile, column_at(tile, column + 2u), c),
            value_of_column(tile, column_at(tile, column + 3u), c),
        );
    }
    // wg_values is visible
    workgroupBarrier();
}

fn values_at(lane: Lane, tile: Tile, column_start: u32, first: u32, c: u32) -> array<f32, COLUMNS> {
    var all: array<f32, COLUMNS>;
    // unroll
    for (var m = 0u; m < COLUMN_QUADS; m++) {
        let four = wg_values[c * COLUMN_VECTORS + m];
        all[4u * m] = four.x;
        all[4u * m + 1u] = four.y;
        all[4u * m + 2u] = four.z;
        all[4u * m + 3u] = four.w;
    }
    return all;
}
