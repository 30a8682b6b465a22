// attention_chunk: how a chunk of vectors lies in workgroup memory: [rows, CHUNK_VECTORS] vectors
// of four, of which eight take all banks. What is read or written together is to lie in different
// ones: columns change places, or, if their number is no power of two, rows are longer.

const CHUNK_VECTORS: u32 = CHUNK / 4u;
const SWAPS: bool = (CHUNK_VECTORS & (CHUNK_VECTORS - 1u)) == 0u;
const STAGE_PITCH: u32 = select(CHUNK_VECTORS | 1u, CHUNK_VECTORS, SWAPS);
const SWAPPED: u32 = select(0u, CHUNK_VECTORS - 1u, SWAPS);
const BANK_ROWS: u32 = max(8u / CHUNK_VECTORS, 1u);

fn stage_index(row: u32, column: u32) -> u32 {
    return row * STAGE_PITCH + (column ^ (row / BANK_ROWS & SWAPPED));
}

// the row of the e-th of the four neighbours that invocation x of THREADS_X has of a part of
// 4 * THREADS_X: those of one e are read together, those of one x written
fn interleaved(part: u32, x: u32, e: u32) -> u32 {
    return (4u * part + e) * THREADS_X + (x ^ (e & 1u));
}
