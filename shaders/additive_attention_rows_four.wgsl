// additive_attention_rows_four: an invocation computes four rows, the components of vectors, one
// workgroup's width apart. Same names as additive_attention_rows_one.wgsl.

alias Rows = vec4<f32>;
alias RowIndices = vec4<u32>;
alias RowFlags = vec4<bool>;

// the rows of an invocation whose first is `first`
fn rows_from(first: u32) -> RowIndices {
    return vec4<u32>(first) + WORKGROUP_SIZE * vec4<u32>(0u, 1u, 2u, 3u);
}

fn row_index(rows: RowIndices, r: u32) -> u32 {
    return rows[r];
}

fn row_of(x: Rows, r: u32) -> f32 {
    return x[r];
}

fn with_row(x: Rows, r: u32, value: f32) -> Rows {
    var changed = x;
    changed[r] = value;
    return changed;
}

fn sum_of_rows(x: Rows) -> f32 {
    let pairs = x.xy + x.zw;
    return pairs.x + pairs.y;
}

fn is_any(flags: RowFlags) -> bool {
    return any(flags);
}

fn rows_allowed(tile: Tile, rows: RowIndices, column: u32) -> RowFlags {
    return vec4<bool>(
        is_allowed(tile, rows.x, column),
        is_allowed(tile, rows.y, column),
        is_allowed(tile, rows.z, column),
        is_allowed(tile, rows.w, column),
    );
}

fn terms_of_rows(at: RowIndices) -> Rows {
    return vec4<f32>(row_term(at.x), row_term(at.y), row_term(at.z), row_term(at.w));
}
