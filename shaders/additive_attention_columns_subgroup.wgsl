// additive_attention_columns_subgroup: the terms and values of COLUMNS columns for all invocations;
// each lane loads COLUMNS_PER_LANE of them and the subgroup hands them round. Same names as
// additive_attention_columns_workgroup.wgsl.
// Holds       the subgroup size is LANES, a constant of the device, and so is the workgroup's;
//             COLUMNS == LANES * COLUMNS_PER_LANE

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) subgroup_index: u32,
}

// exp(2 term) [COLUMNS_PER_LANE, CHUNK] of this lane's columns
var<private> lane_terms: array<f32, COLUMNS_PER_LANE * CHUNK>;

// past the end the last column is repeated; it is masked
fn column_at(tile: Tile, column: u32) -> u32 {
    return min(column, tile.column_end - 1u);
}

// Whether any term of this chunk, the rows' included, is out of the bounds of the factored form.
fn stage_terms(
    lane: Lane, tile: Tile, column_start: u32, chunk: u32, clean: bool, wild_rows: bool,
) -> bool {
    var wild = wild_rows;
    // unroll
    for (var m = 0u; m < COLUMNS_PER_LANE; m++) {
        let column = column_at(tile, column_start + m * LANES + lane.subgroup_index);
        // unroll
        for (var d = 0u; d < CHUNK; d++) {
            let x = term_of_column(tile, column, chunk + d, clean);
            wild = wild || abs(x) > FACTORED_BOUND;
            lane_terms[m * CHUNK + d] = exp2(TWO_LOG2_E * x);
        }
    }
    return subgroupAny(wild);
}

fn terms_at(d: u32) -> array<f32, COLUMNS> {
    var all: array<f32, COLUMNS>;
    // unroll
    for (var m = 0u; m < COLUMNS_PER_LANE; m++) {
        let x = lane_terms[m * CHUNK + d];
        // unroll
        for (var j = 0u; j < LANES; j++) {
            all[m * LANES + j] = subgroupBroadcast(x, j);
        }
    }
    return all;
}

// values are handed round as they are loaded
fn stage_values(lane: Lane, tile: Tile, column_start: u32, first: u32) {
}

fn values_at(lane: Lane, tile: Tile, column_start: u32, first: u32, c: u32) -> array<f32, COLUMNS> {
    var all: array<f32, COLUMNS>;
    // unroll
    for (var m = 0u; m < COLUMNS_PER_LANE; m++) {
        let column = column_at(tile, column_start + m * LANES + lane.subgroup_index);
        let x = value_of_column(tile, column, first + c);
        // unroll
        for (var j = 0u; j < LANES; j++) {
            all[m * LANES + j] = subgroupBroadcast(x, j);
        }
    }
    return all;
}
