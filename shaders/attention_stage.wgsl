// attention_stage: how attention.wgsl fills wg_stage: with a chunk of the queries and keys, or with
// some values. Either at once, or (PREFETCH) in two steps, so that the loads are under way while
// products are computed: load_* into registers, later store_*.

const_assert !PREFETCH || QUERY_ITEMS * WORKGROUP_SIZE == ROW_TILE * CHUNK_VECTORS;
const_assert !PREFETCH || KEY_ITEMS * WORKGROUP_SIZE == KEY_TILE * CHUNK_VECTORS;
const_assert !PREFETCH || VALUE_ITEMS * WORKGROUP_SIZE == VALUE_KEYS * VALUE_PITCH;

struct Chunk {
    query: array<vec4<f32>, QUERY_ITEMS>,
    key: array<vec4<f32>, KEY_ITEMS>,
}

struct Values {
    value: array<vec4<f32>, VALUE_ITEMS>,
}

fn query_item(tile: Tile, chunk: u32, i: u32) -> vec4<f32> {
    let row = tile.start + i / CHUNK_VECTORS;
    if (row < tile.rows) {
        return query_vector(query_row(tile, row), chunk + 4u * (i % CHUNK_VECTORS));
    }
    return vec4<f32>();
}

fn query_slot(i: u32) -> u32 {
    return i / CHUNK_VECTORS * STAGE_PITCH + i % CHUNK_VECTORS;
}

fn key_item(tile: Tile, key_start: u32, chunk: u32, i: u32) -> vec4<f32> {
    let key = key_start + i / CHUNK_VECTORS;
    if (key < tile.key_end) {
        return key_vector(key_row(tile, key), chunk + 4u * (i % CHUNK_VECTORS));
    }
    return vec4<f32>();
}

// the keys of one invocation lie THREADS_X rows apart
fn key_slot(i: u32) -> u32 {
    let key = i / CHUNK_VECTORS;
    let part = key / PART_KEYS * PART_KEYS;
    let row = part + key % 4u * THREADS_X + (key - part) / 4u;
    return STAGED_KEYS + row * STAGE_PITCH + i % CHUNK_VECTORS;
}

fn value_item(tile: Tile, first_key: u32, i: u32) -> vec4<f32> {
    let key = first_key + i / VALUE_PITCH;
    if (key < tile.key_end) {
        return value_vector(value_row(tile, key), 4u * (i % VALUE_PITCH));
    }
    return vec4<f32>();
}

fn stage_chunk(lane: Lane, tile: Tile, key_start: u32, chunk: u32) {
    for (var i = lane.index; i < ROW_TILE * CHUNK_VECTORS; i += WORKGROUP_SIZE) {
        wg_stage[query_slot(i)] = query_item(tile, chunk, i);
    }
    for (var i = lane.index; i < KEY_TILE * CHUNK_VECTORS; i += WORKGROUP_SIZE) {
        wg_stage[key_slot(i)] = key_item(tile, key_start, chunk, i);
    }
}

fn load_chunk(lane: Lane, tile: Tile, key_start: u32, chunk: u32) -> Chunk {
    var result: Chunk;
    // unroll
    for (var n = 0u; n < QUERY_ITEMS; n++) {
        result.query[n] = query_item(tile, chunk, lane.index + n * WORKGROUP_SIZE);
    }
    // unroll
    for (var n = 0u; n < KEY_ITEMS; n++) {
        result.key[n] = key_item(tile, key_start, chunk, lane.index + n * WORKGROUP_SIZE);
    }
    return result;
}

fn store_chunk(lane: Lane, chunk: Chunk) {
    // unroll
    for (var n = 0u; n < QUERY_ITEMS; n++) {
        wg_stage[query_slot(lane.index + n * WORKGROUP_SIZE)] = chunk.query[n];
    }
    // unroll
    for (var n = 0u; n < KEY_ITEMS; n++) {
        wg_stage[key_slot(lane.index + n * WORKGROUP_SIZE)] = chunk.key[n];
    }
}

fn store_value(slot: u32, value: vec4<f32>, block: u32) {
    wg_stage[slot] = value;
    if (MASKS_PAIRS) {
        if (block != CLASS_INSIDE && is_nonfinite(value)) {
            atomicStore(&wg_nonfinite, 1u);
        }
    }
}

fn stage_values(lane: Lane, tile: Tile, first_key: u32, block: u32) {
    for (var i = lane.index; i < VALUE_KEYS * VALUE_PITCH; i += WORKGROUP_SIZE) {
        store_value(i, value_item(tile, first_key, i), block);
    }
}

fn load_values(lane: Lane, tile: Tile, first_key: u32) -> Values {
    var result: Values;
    // unroll
    for (var n = 0u; n < VALUE_ITEMS; n++) {
        result.value[n] = value_item(tile, first_key, lane.index + n * WORKGROUP_SIZE);
    }
    return result;
}

fn store_values(lane: Lane, values: Values, block: u32) {
    // unroll
    for (var n = 0u; n < VALUE_ITEMS; n++) {
        store_value(lane.index + n * WORKGROUP_SIZE, values.value[n], block);
    }
}
