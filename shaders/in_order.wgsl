// in_order: a loop that runs once and keeps a compiler from mixing what is in it with the rest.
//
// Of products in a long text, a CPU's compiler makes all before it adds the first, and has no
// registers for them. A loop of whose length it does not know is a border.
// Needs params.num_groups, 1 or more.

// 1; with IN_ORDER no compiler knows
fn once() -> u32 {
    if (IN_ORDER) {
        return min(params.num_groups, 1u);
    }
    return 1u;
}
