// recurrent_backward_added: from the sums of each gate those of all gates of an invocation.

// in order of the gates
fn added(
    sums: array<array<array<f32, COLUMNS>, GATES_EACH>, TOGETHER>,
) -> array<array<f32, COLUMNS>, TOGETHER> {
    var all: array<array<f32, COLUMNS>, TOGETHER>;
    // unroll
    for (var b = 0u; b < TOGETHER; b++) {
        // unroll
        for (var i = 0u; i < COLUMNS; i++) {
            all[b][i] = sums[b][0][i];
            // unroll
            for (var q = 0u; q < GATES_EACH; q++) {
                if (q > 0u) {
                    all[b][i] += sums[b][q][i];
                }
            }
        }
    }
    return all;
}
