// additive_attention_rows_one: an invocation computes one row. Same names as
// additive_attention_rows_four.wgsl.

alias Rows = f32;
alias RowIndices = u32;
alias RowFlags = bool;

// the rows of an invocation whose first is `first`
fn rows_from(first: u32) -> RowIndices {
    return first;
}

fn row_index(rows: RowIndices, r: u32) -> u32 {
    return rows;
}

fn row_of(x: Rows, r: u32) -> f32 {
    return x;
}

fn with_row(x: Rows, r: u32, value: f32) -> Rows {
    return value;
}

fn sum_of_rows(x: Rows) -> f32 {
    return x;
}

fn is_any(flags: RowFlags) -> bool {
    return flags;
}

fn rows_allowed(tile: Tile, rows: RowIndices, column: u32) -> RowFlags {
    return is_allowed(tile, rows, column);
}

fn terms_of_rows(at: RowIndices) -> Rows {
    return row_term(at);
}
