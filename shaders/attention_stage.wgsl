// attention_stage: workgroup memory of attention.wgsl, wg_stage: in turn a chunk of the queries
// and keys, and the weights and values of some keys. Queries, keys and values come there at once,
// or (PREFETCH) in two steps, so that the loads are under way while products are computed: load_*
// into registers, later store_*.

const WORKGROUP_SIZE: u32 = THREADS_X * THREADS_Y;
const ROW_TILE: u32 = ROWS * THREADS_Y;
const PART_KEYS: u32 = 4u * THREADS_X;
const KEY_TILE: u32 = KEY_VECTORS * PART_KEYS;
// invocations of a row that share its output
const COLUMNS: u32 = THREADS_X / SHARES;

// a chunk: [ROW_TILE + KEY_TILE, CHUNK_VECTORS], see attention_chunk.wgsl
const KEYS_AT: u32 = ROW_TILE * STAGE_PITCH;

// [ROW_TILE, WEIGHT_VECTORS], behind it [VALUE_KEYS, VALUE_PITCH]
const WEIGHT_VECTORS: u32 = VALUE_KEYS / 4u;
const VALUE_PITCH: u32 = VALUE_VECTORS * COLUMNS;
const VALUES_AT: u32 = ROW_TILE * WEIGHT_VECTORS;
const STAGE_SIZE: u32 = max(KEYS_AT + KEY_TILE * STAGE_PITCH, VALUES_AT + VALUE_KEYS * VALUE_PITCH);

var<workgroup> wg_stage: array<vec4<f32>, STAGE_SIZE>;
// whether any value seen so far, beside those of CLASS_INSIDE, is NaN or infinite
var<workgroup> wg_nonfinite: atomic<u32>;

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

fn query_index(i: u32) -> u32 {
    return stage_index(i / CHUNK_VECTORS, i % CHUNK_VECTORS);
}

fn key_item(tile: Tile, key_start: u32, chunk: u32, i: u32) -> vec4<f32> {
    let key = key_start + i / CHUNK_VECTORS;
    if (key < tile.key_end) {
        return key_vector(key_row(tile, key), chunk + 4u * (i % CHUNK_VECTORS));
    }
    return vec4<f32>();
}

fn key_index(i: u32) -> u32 {
    let key = i / CHUNK_VECTORS;
    let row = interleaved(key / PART_KEYS, key / 4u % THREADS_X, key % 4u);
    return KEYS_AT + stage_index(row, i % CHUNK_VECTORS);
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
        wg_stage[query_index(i)] = query_item(tile, chunk, i);
    }
    for (var i = lane.index; i < KEY_TILE * CHUNK_VECTORS; i += WORKGROUP_SIZE) {
        wg_stage[key_index(i)] = key_item(tile, key_start, chunk, i);
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
        wg_stage[query_index(lane.index + n * WORKGROUP_SIZE)] = chunk.query[n];
    }
    // unroll
    for (var n = 0u; n < KEY_ITEMS; n++) {
        wg_stage[key_index(lane.index + n * WORKGROUP_SIZE)] = chunk.key[n];
    }
}

fn store_value(slot: u32, value: vec4<f32>, block: u32) {
    wg_stage[VALUES_AT + slot] = value;
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
