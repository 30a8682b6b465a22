// attention_backward_classes: the classes of a mask's blocks as the backward kernels ask for them.
// Their tiles differ in size, and rows are of either side (ROWS_ARE_KEYS): one table serves all, in
// blocks as small as the smallest tiles, and a tile asks for all the blocks that it touches,
// wherever it begins (the queries of a key may begin anywhere under a causal mask).

// Others from start on, and the class of their pairs with a workgroup's rows.
struct Others {
    start: u32,
    block: u32,
}

// whole multiples of 16 bytes, see attention_cooperative_stage.wgsl
var<workgroup> wg_others: vec4<u32>;

// of the pairs of ROW_TILE rows with OTHER_TILE others, as far as their sequence goes
fn tile_class(tile: Tile, row_start: u32, other_start: u32) -> u32 {
    var first = vec2<u32>(row_start, other_start);
    var size = vec2<u32>(ROW_TILE, OTHER_TILE);
    if (ROWS_ARE_KEYS) {
        first = first.yx;
        size = size.yx;
    }
    let last = min(first + size, vec2<u32>(tile.rows, tile.kv_len));
    let own = vec2<u32>(CLASS_ROWS, CLASS_KEYS);
    let end = (last + own - vec2<u32>(1u)) / own;
    var least = CLASS_ALL;
    var most = CLASS_NONE;
    for (var i = first.x / CLASS_ROWS; i < end.x; i++) {
        for (var j = first.y / CLASS_KEYS; j < end.y; j++) {
            let block = aux[tile.classes + i * params.classes_query + j];
            least = min(least, block);
            most = max(most, block);
        }
    }
    return select(CLASS_SOME, least, least == most);
}

// the first OTHER_TILE others, in steps of so many from start on and before end, that the mask does
// not keep from all rows
fn next_others(lane: Lane, tile: Tile, row_start: u32, start: u32, end: u32) -> Others {
    if (CLASSES) {
        var at = start;
        var block = CLASS_NONE;
        while (at < end) {
            block = tile_class(tile, row_start, at);
            if (block != CLASS_NONE) {
                break;
            }
            at += OTHER_TILE;
        }
        if (lane.index == 0u) {
            wg_others = vec4<u32>(at, block, 0u, 0u);
        }
        let all = workgroupUniformLoad(&wg_others);
        return Others(all.x, all.y);
    } else {
        return Others(start, CLASS_SOME);
    }
}
