// attention_lane: an invocation of a kernel that needs nothing of its subgroup.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}
