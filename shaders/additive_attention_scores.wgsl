// additive_attention_scores: a block of scores, rows in the invocations, COLUMNS columns at a time.
//
// With E = exp(2 (a + b)) = exp(2a) exp(2b) and r = 1 / (1 + E):
//     tanh(a + b) = 1 - 2r      1 - tanh(a + b)^2 = 4 E r^2
//     score = sum_d v_d (1 - 2 r_d)
// The exponentials are taken once per element, not once per pair (the factored form), and two terms
// share a division: v_0 / x_0 + v_1 / x_1 = (v_0 x_1 + v_1 x_0) / (x_0 x_1), x = 1 + E.
// With |a|, |b| <= FACTORED_BOUND, x_0 x_1 <= exp(80): nothing overflows. Clamping a and b singly
// would be wrong (30 and -29), so a chunk with any larger term is computed from the sums a + b (the
// direct form).
// 1 - 2r is exact to 1e-7 absolutely, not relatively where a + b is small: the same error that a
// score's larger terms have anyway. Each chunk is summed around 0, as sum v_d (r_d - 1/2), so that
// a v of one sign does not cost digits.
//
// A row is a query and a column a key, or the other way round: tanh(a + b) does not care.

const FACTORED_BOUND: f32 = 10.0;
const TWO_LOG2_E: f32 = 2.0 * LOG2_E;

// One workgroup's share: rows of one batch row, and the columns that some of them may attend.
struct Tile {
    batch: u32,
    // rows row_start..row_end
    row_start: u32,
    row_end: u32,
    // rows from here on attend nothing and are attended by nothing
    row_limit: u32,
    // columns 0..column_end
    column_end: u32,
    // element of row 0 and column 0
    row_terms: u32,
    column_terms: u32,
    row_values: u32,
    column_values: u32,
}

// past params.dim the last element is repeated; its v is 0. `clean` makes a NaN 0: the gradient of
// a masked pair is 0 times what its terms give, and 0 times NaN would be NaN
fn term_of_column(tile: Tile, column: u32, d: u32, clean: bool) -> f32 {
    let x = column_term(tile.column_terms + column * params.dim + min(d, params.dim - 1u));
    return select(x, 0.0, clean && is_nan(x));
}

fn term_of_rows(tile: Tile, rows: RowIndices, d: u32) -> Rows {
    let first = RowIndices(tile.row_terms + min(d, params.dim - 1u));
    return terms_of_rows(first + rows * params.dim);
}

// past params.value_dim the last element is repeated
fn value_of_column(tile: Tile, column: u32, c: u32) -> f32 {
    let last = params.value_dim - 1u;
    return column_value(tile.column_values + column * params.value_dim + min(c, last));
}

fn weight_of_term(d: u32) -> f32 {
    return select(0.0, v_at(min(d, params.dim - 1u)), d < params.dim);
}

// 1 / (1 + exp(2x)); beyond 15 it is 0 or 1 in f32
fn direct(x: Rows) -> Rows {
    let y = 1.0 / (1.0 + exp2(TWO_LOG2_E * clamp(x, Rows(-15.0), Rows(15.0))));
    let nan = (bitcast<RowIndices>(x) & RowIndices(0x7fffffffu)) > RowIndices(0x7f800000u);
    return select(y, x, nan);
}

// Scores times log2(e) of the rows, which must be in range, against columns from column_start on.
fn scores(lane: Lane, tile: Tile, rows: RowIndices, column_start: u32) -> array<Rows, COLUMNS> {
    // sum v_d (r_d - 1/2)
    var sum: array<Rows, COLUMNS>;
    // unroll
    for (var j = 0u; j < COLUMNS; j++) {
        sum[j] = Rows(0.0);
    }
    for (var chunk = 0u; chunk < params.dim; chunk += CHUNK) {
        var row: array<Rows, CHUNK>;
        var wild_rows = false;
        // unroll
        for (var d = 0u; d < CHUNK; d++) {
            let x = term_of_rows(tile, rows, chunk + d);
            wild_rows = wild_rows || is_any(abs(x) > Rows(FACTORED_BOUND));
            row[d] = exp2(TWO_LOG2_E * x);
        }
        let wild = stage_terms(lane, tile, column_start, chunk, false, wild_rows);
        var half = 0.0;
        // unroll
        for (var d = 0u; d < CHUNK; d++) {
            half += 0.5 * weight_of_term(chunk + d);
        }
        var next: array<Rows, COLUMNS>;
        // unroll
        for (var j = 0u; j < COLUMNS; j++) {
            next[j] = sum[j] - half;
        }
        // unroll
        for (var p = 0u; p < CHUNK_PAIRS; p++) {
            let b0 = terms_at(2u * p);
            let b1 = terms_at(2u * p + 1u);
            let v0 = weight_of_term(chunk + 2u * p);
            let v1 = weight_of_term(chunk + 2u * p + 1u);
            // unroll
            for (var j = 0u; j < COLUMNS; j++) {
                let x0 = row[2u * p] * b0[j] + 1.0;
                let x1 = row[2u * p + 1u] * b1[j] + 1.0;
                next[j] += (v0 * x1 + v1 * x0) / (x0 * x1);
            }
        }
        if (wild) {
            // rare: short code, a column at a time
            let end = min(chunk + CHUNK, params.dim);
            for (var column = 0u; column < COLUMNS; column++) {
                var added = Rows(0.0);
                for (var d = chunk; d < end; d++) {
                    let a = term_of_rows(tile, rows, d);
                    let at = column_at(tile, column_start + column);
                    let b = term_of_column(tile, at, d, false);
                    added += v_at(d) * (direct(a + b) - 0.5);
                }
                // unroll
                for (var j = 0u; j < COLUMNS; j++) {
                    sum[j] += select(Rows(0.0), added, RowFlags(j == column));
                }
            }
        } else {
            sum = next;
        }
    }
    // unroll
    for (var j = 0u; j < COLUMNS; j++) {
        sum[j] *= -TWO_LOG2_E;
    }
    return sum;
}
