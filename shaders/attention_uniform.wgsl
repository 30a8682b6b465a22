// attention_uniform: what a workgroup reads from a tensor and lets decide about loops with
// barriers goes through workgroup memory, for compilers that must see that all invocations have the
// same.

var<workgroup> wg_tile: Tile;
var<workgroup> wg_class: u32;

fn uniform_tile(lane: Lane, own: Tile) -> Tile {
    if (FROM_DEVICE) {
        if (lane.index == 0u) {
            wg_tile = own;
        }
        return workgroupUniformLoad(&wg_tile);
    } else {
        return own;
    }
}

fn uniform_class(lane: Lane, own: u32) -> u32 {
    if (CLASSES) {
        if (lane.index == 0u) {
            wg_class = own;
        }
        return workgroupUniformLoad(&wg_class);
    } else {
        return own;
    }
}
