// attention_backward_products: the products of a tile of rows with a tile of others, in register
// blocks; invocation (x, y) has rows y + r * THREADS_Y and others 4x .. 4x + 3. A chunk of both
// sides is staged at once, or (PREFETCH) in two steps, so that loads are under way while products
// are computed.
// Holds       with PREFETCH an invocation stages ROW_ITEMS vectors of rows, OTHER_ITEMS of others

const WORKGROUP_SIZE: u32 = THREADS_X * THREADS_Y;
const ROW_TILE: u32 = ROWS * THREADS_Y;
const OTHER_TILE: u32 = 4u * THREADS_X;
// a chunk: [ROW_TILE + OTHER_TILE, CHUNK_VECTORS] vectors of four, of which eight take all banks.
// What is read or written together is to lie in different ones: columns change places, or, if their
// number is no power of two, rows are longer
const CHUNK_VECTORS: u32 = CHUNK / 4u;
const SWAPS: bool = (CHUNK_VECTORS & (CHUNK_VECTORS - 1u)) == 0u;
const STAGE_PITCH: u32 = select(CHUNK_VECTORS | 1u, CHUNK_VECTORS, SWAPS);
const SWAPPED: u32 = select(0u, CHUNK_VECTORS - 1u, SWAPS);
const BANK_ROWS: u32 = max(8u / CHUNK_VECTORS, 1u);
const OTHERS_AT: u32 = ROW_TILE * STAGE_PITCH;
const PRODUCTS_SIZE: u32 = OTHERS_AT + OTHER_TILE * STAGE_PITCH;

alias Block = array<vec4<f32>, ROWS>;

var<workgroup> wg_stage: array<vec4<f32>, STAGE_SIZE>;
// [ROW_TILE, THREADS_X] vectors of four others
var<workgroup> wg_pairs: array<vec4<f32>, ROW_TILE * THREADS_X>;

// rows that are read together lie in different banks
fn pair_index(row: u32, other_vector: u32) -> u32 {
    return row * THREADS_X + (other_vector ^ (row & (THREADS_X - 1u)));
}

fn stage_index(row: u32, column: u32) -> u32 {
    return row * STAGE_PITCH + (column ^ ((row / BANK_ROWS) & SWAPPED));
}

// the row of the e-th of the four others of invocation x: those of one e are read together, those
// of one x written
fn interleaved(x: u32, e: u32) -> u32 {
    return e * THREADS_X + (x ^ (e & 1u));
}

const_assert !PREFETCH || ROW_ITEMS * WORKGROUP_SIZE == ROW_TILE * CHUNK_VECTORS;
const_assert !PREFETCH || OTHER_ITEMS * WORKGROUP_SIZE == OTHER_TILE * CHUNK_VECTORS;

// What is multiplied: the rows from row_start with the others others.x .. others.y, as far as the
// tile goes; of each its first or its second vector.
struct Factors {
    row_start: u32,
    others: vec2<u32>,
    second: bool,
}

struct Chunk {
    row: array<vec4<f32>, ROW_ITEMS>,
    other: array<vec4<f32>, OTHER_ITEMS>,
}

fn row_item(tile: Tile, factors: Factors, chunk: u32, i: u32) -> vec4<f32> {
    let row = factors.row_start + i / CHUNK_VECTORS;
    if (row < num_rows(tile)) {
        return row_vector(tile, row, chunk + 4u * (i % CHUNK_VECTORS), factors.second);
    }
    return vec4<f32>();
}

fn row_index(i: u32) -> u32 {
    return stage_index(i / CHUNK_VECTORS, i % CHUNK_VECTORS);
}

fn other_item(tile: Tile, factors: Factors, chunk: u32, i: u32) -> vec4<f32> {
    let other = factors.others.x + i / CHUNK_VECTORS;
    if (other < factors.others.y) {
        return other_vector(tile, other, chunk + 4u * (i % CHUNK_VECTORS), factors.second);
    }
    return vec4<f32>();
}

fn other_index(i: u32) -> u32 {
    let other = i / CHUNK_VECTORS;
    return OTHERS_AT + stage_index(interleaved(other / 4u, other % 4u), i % CHUNK_VECTORS);
}

fn stage_chunk(lane: Lane, tile: Tile, factors: Factors, chunk: u32) {
    for (var i = lane.index; i < ROW_TILE * CHUNK_VECTORS; i += WORKGROUP_SIZE) {
        wg_stage[row_index(i)] = row_item(tile, factors, chunk, i);
    }
    for (var i = lane.index; i < OTHER_TILE * CHUNK_VECTORS; i += WORKGROUP_SIZE) {
        wg_stage[other_index(i)] = other_item(tile, factors, chunk, i);
    }
}

fn load_chunk(lane: Lane, tile: Tile, factors: Factors, chunk: u32) -> Chunk {
    var result: Chunk;
    // unroll
    for (var n = 0u; n < ROW_ITEMS; n++) {
        result.row[n] = row_item(tile, factors, chunk, lane.index + n * WORKGROUP_SIZE);
    }
    // unroll
    for (var n = 0u; n < OTHER_ITEMS; n++) {
        result.other[n] = other_item(tile, factors, chunk, lane.index + n * WORKGROUP_SIZE);
    }
    return result;
}

fn store_chunk(lane: Lane, chunk: Chunk) {
    // unroll
    for (var n = 0u; n < ROW_ITEMS; n++) {
        wg_stage[row_index(lane.index + n * WORKGROUP_SIZE)] = chunk.row[n];
    }
    // unroll
    for (var n = 0u; n < OTHER_ITEMS; n++) {
        wg_stage[other_index(lane.index + n * WORKGROUP_SIZE)] = chunk.other[n];
    }
}

fn products(lane: Lane, tile: Tile, factors: Factors) -> Block {
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;
    var sum: Block;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        sum[r] = vec4<f32>();
    }
    var next: Chunk;
    if (PREFETCH) {
        next = load_chunk(lane, tile, factors, 0u);
    }
    let dims = select(HEAD_DIM, VALUE_DIM, factors.second);
    for (var chunk = 0u; chunk < dims; chunk += CHUNK) {
        // wg_stage is free
        workgroupBarrier();
        if (PREFETCH) {
            store_chunk(lane, next);
        } else {
            stage_chunk(lane, tile, factors, chunk);
        }
        // wg_stage is visible
        workgroupBarrier();
        if (PREFETCH) {
            // past the end zeros, without a load
            next = load_chunk(lane, tile, factors, chunk + CHUNK);
        }
        // a GPU's driver repeats the body if it knows how often; for a CPU's that takes seconds
        let vectors = select((dims - chunk + 3u) / 4u, CHUNK_VECTORS, PREFETCH);
        for (var d = 0u; d < min(CHUNK_VECTORS, vectors); d++) {
            let o0 = wg_stage[OTHERS_AT + stage_index(interleaved(x, 0u), d)];
            let o1 = wg_stage[OTHERS_AT + stage_index(interleaved(x, 1u), d)];
            let o2 = wg_stage[OTHERS_AT + stage_index(interleaved(x, 2u), d)];
            let o3 = wg_stage[OTHERS_AT + stage_index(interleaved(x, 3u), d)];
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let own = wg_stage[stage_index(y + r * THREADS_Y, d)];
                sum[r].x = add_dot(own, o0, sum[r].x);
                sum[r].y = add_dot(own, o1, sum[r].y);
                sum[r].z = add_dot(own, o2, sum[r].z);
                sum[r].w = add_dot(own, o3, sum[r].w);
            }
        }
    }
    return sum;
}
