// attention_uniform: what a workgroup reads from a tensor and lets decide about loops with
// barriers goes through workgroup memory, for compilers that must see that all invocations have the
// same.

// the first of four: whole multiples of 16 bytes, see attention_cooperative_stage.wgsl
var<workgroup> wg_tile: array<Tile, 4>;
var<workgroup> wg_class: array<u32, 4>;

fn uniform_tile(lane: Lane, own: Tile) -> Tile {
    if (FROM_DEVICE) {
        if (lane.index == 0u) {
            wg_tile[0] = own;
        }
        return workgroupUniformLoad(&wg_tile[0]);
    } else {
        return own;
    }
}

fn uniform_class(lane: Lane, own: u32) -> u32 {
    if (CLASSES) {
        if (lane.index == 0u) {
            wg_class[0] = own;
        }
        return workgroupUniformLoad(&wg_class[0]);
    } else {
        return own;
    }
}
