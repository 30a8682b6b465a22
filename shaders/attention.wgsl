// attention: output = softmax(scores) value, one pass over the keys.
//
// For one query row, with running maximum m, running sum l and accumulator acc:
//     m' = max(m, s)      s: see attention_scores.wgsl
//     l' = l * exp(m - m') + exp(s - m')
//     acc' = acc * exp(m - m') + keep * exp(s - m') * value_j
// and finally output = acc / l, log_sum_exp = m + ln l. keep is 1; with DROPOUT 0 or 1 / (1 - p).
// A sink is one more s, without a value. Of several splits of the keys each has its own output.
// Source: Dao et al. 2022 (FlashAttention), Alg. 1; Milakov & Gimelshein 2018 (online softmax);
// Xiao et al. 2024 (sinks).
//
// Layout      see attention_problem.wgsl
// Grid        one workgroup per ROW_TILE rows of one head and split, folded to two dimensions
// Workgroup   THREADS_X * THREADS_Y invocations; invocation (x, y) computes rows
//             y + r * THREADS_Y of the tile, and of each row the scores of keys 4x .. 4x + 3 of
//             each PART_KEYS keys and every THREADS_X-th vector of the output from x on: in
//             registers, blocks of ROWS x KEY_VECTORS and of ROWS x VALUE_VECTORS vectors
// Memory      wg_stage: a chunk of the queries and keys, then of the values; wg_weights: exp(s - m)
//             of PART_KEYS keys
// Holds       ROWS == 4 * ROW_VECTORS; THREADS_X is a power of two; CHUNK % 4 == 0;
//             VALUE_VECTORS * THREADS_X * 4 >= VALUE_DIM; VALUE_KEYS % 4 == 0 divides PART_KEYS
// Precision   f32; a value whose weight is masked to 0 does not reach the sum, be it NaN
// Parts       common.wgsl, element_*.wgsl or vectors_*.wgsl, philox.wgsl, attention_bindings.wgsl,
//             attention_problem.wgsl, attention_rows.wgsl, attention_loads*.wgsl,
//             attention_scores.wgsl, attention_uniform.wgsl, attention_stage.wgsl,
//             attention_sums.wgsl, reduce_workgroup.wgsl or reduce_subgroup.wgsl

const WORKGROUP_SIZE: u32 = THREADS_X * THREADS_Y;
const ROW_TILE: u32 = ROWS * THREADS_Y;
const PART_KEYS: u32 = 4u * THREADS_X;
const KEY_TILE: u32 = KEY_VECTORS * PART_KEYS;

// in vectors of four; one more per row of the stage, so that its columns lie in different banks
const CHUNK_VECTORS: u32 = CHUNK / 4u;
const STAGE_PITCH: u32 = CHUNK_VECTORS + 1u;
const STAGED_KEYS: u32 = ROW_TILE * STAGE_PITCH;
const VALUE_PITCH: u32 = VALUE_VECTORS * THREADS_X;
const STAGE_SIZE: u32 = max(STAGED_KEYS + KEY_TILE * STAGE_PITCH, VALUE_KEYS * VALUE_PITCH);

var<workgroup> wg_stage: array<vec4<f32>, STAGE_SIZE>;
// [ROW_TILE, THREADS_X] vectors of four keys
var<workgroup> wg_weights: array<vec4<f32>, ROW_TILE * THREADS_X>;
// whether any value seen so far, beside those of CLASS_INSIDE, is NaN or infinite
var<workgroup> wg_nonfinite: atomic<u32>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
) {
    let group = workgroup.x + workgroup.y * num_workgroups.x;
    if (group >= params.num_groups) {
        return;
    }
    let tile = uniform_tile(lane, tile_of(group));
    if (tile.start >= tile.rows) {
        return;
    }
    let x = lane.index % THREADS_X;
    let y = lane.index / THREADS_X;

    var acc: Sums;
    var row_max: array<vec4<f32>, ROW_VECTORS>;
    // of this invocation's keys only, until the end
    var row_sum: array<vec4<f32>, ROW_VECTORS>;
    // unroll
    for (var v = 0u; v < ROW_VECTORS; v++) {
        row_max[v] = vec4<f32>(MASKED);
        row_sum[v] = vec4<f32>();
    }
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var c = 0u; c < VALUE_VECTORS; c++) {
            acc[r][c] = vec4<f32>();
        }
    }
    if (MASKS_PAIRS && lane.index == 0u) {
        atomicStore(&wg_nonfinite, 0u);
    }

    var next_chunk: Chunk;
    var next_values: Values;
    if (PREFETCH) {
        next_chunk = load_chunk(lane, tile, tile.key_start, 0u);
    }
    for (var key_start = tile.key_start; key_start < tile.key_end; key_start += KEY_TILE) {
        var block = uniform_class(lane, block_class(tile, key_start));
        if (CLASSES && block == CLASS_NONE) {
            if (PREFETCH) {
                next_chunk = load_chunk(lane, tile, key_start + KEY_TILE, 0u);
            }
            continue;
        }
        if (MASKS_PAIRS) {
            if (all_allowed(tile, key_start, block)) {
                block = CLASS_INSIDE;
            }
        }
        // pass 1: scores, a chunk of the head dimension at a time
        var score: array<array<vec4<f32>, KEY_VECTORS>, ROWS>;
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            // unroll
            for (var v = 0u; v < KEY_VECTORS; v++) {
                score[r][v] = vec4<f32>();
            }
        }
        for (var chunk = 0u; chunk < HEAD_DIM; chunk += CHUNK) {
            // wg_stage is free
            workgroupBarrier();
            if (PREFETCH) {
                store_chunk(lane, next_chunk);
            } else {
                stage_chunk(lane, tile, key_start, chunk);
            }
            // wg_stage is visible
            workgroupBarrier();
            if (PREFETCH) {
                if (chunk + CHUNK < HEAD_DIM) {
                    next_chunk = load_chunk(lane, tile, key_start, chunk + CHUNK);
                } else {
                    next_values = load_values(lane, tile, key_start);
                }
            }
            for (var d = 0u; d < CHUNK_VECTORS; d++) {
                var key: array<array<vec4<f32>, 4>, KEY_VECTORS>;
                // unroll
                for (var v = 0u; v < KEY_VECTORS; v++) {
                    // unroll
                    for (var e = 0u; e < 4u; e++) {
                        let staged = x + (4u * v + e) * THREADS_X;
                        key[v][e] = wg_stage[STAGED_KEYS + staged * STAGE_PITCH + d];
                    }
                }
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    let q = wg_stage[(y + r * THREADS_Y) * STAGE_PITCH + d];
                    // unroll
                    for (var v = 0u; v < KEY_VECTORS; v++) {
                        // unroll
                        for (var e = 0u; e < 4u; e++) {
                            score[r][v][e] = add_dot(q, key[v][e], score[r][v][e]);
                        }
                    }
                }
            }
        }

        // pass 2: mask, new maximum, weights; rescale what is there to the new maximum
        let own_keys = vec4<u32>(key_start + 4u * x) + vec4<u32>(0u, 1u, 2u, 3u);
        var tile_max: array<vec4<f32>, ROW_VECTORS>;
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            let row = vec4<u32>(tile.start + y + r * THREADS_Y);
            var own_max = MASKED;
            // unroll
            for (var v = 0u; v < KEY_VECTORS; v++) {
                let pairs = Pairs(row, own_keys + v * PART_KEYS);
                score[r][v] = scores(tile, pairs, score[r][v], block);
                own_max = max(own_max, largest(score[r][v]));
            }
            tile_max[r / 4u][r % 4u] = own_max;
        }
        var rescale: array<vec4<f32>, ROW_VECTORS>;
        // unroll
        for (var v = 0u; v < ROW_VECTORS; v++) {
            let new_max = max(row_max[v], max_over_row(lane, tile_max[v]));
            rescale[v] = exp2(row_max[v] - new_max);
            row_max[v] = new_max;
            row_sum[v] *= rescale[v];
        }
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            // unroll
            for (var c = 0u; c < VALUE_VECTORS; c++) {
                acc[r][c] *= rescale[r / 4u][r % 4u];
            }
        }

        // unroll
        for (var v = 0u; v < KEY_VECTORS; v++) {
            let part = key_start + v * PART_KEYS;
            if (v > 0u) {
                // wg_weights is free
                workgroupBarrier();
            }
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let row = y + r * THREADS_Y;
                let weight = weights_of(score[r][v], row_max[r / 4u][r % 4u]);
                row_sum[r / 4u][r % 4u] += dot(weight, vec4<f32>(1.0));
                wg_weights[weight_index(row, x)] =
                    after_dropout(tile, tile.start + row, part + 4u * x, weight);
            }

            // pass 3: weighted sum of the values, VALUE_KEYS keys at a time
            for (var first_key = 0u; first_key < PART_KEYS; first_key += VALUE_KEYS) {
                // wg_stage is free
                workgroupBarrier();
                if (PREFETCH) {
                    store_values(lane, next_values, block);
                } else {
                    stage_values(lane, tile, part + first_key, block);
                }
                // wg_stage, wg_weights and wg_nonfinite are visible
                workgroupBarrier();
                if (PREFETCH) {
                    if (v + 1u < KEY_VECTORS || first_key + VALUE_KEYS < PART_KEYS) {
                        next_values = load_values(lane, tile, part + first_key + VALUE_KEYS);
                    } else {
                        next_chunk = load_chunk(lane, tile, key_start + KEY_TILE, 0u);
                    }
                }
                add_values(lane, first_key, block, &acc);
            }
        }
    }

    // unroll
    for (var v = 0u; v < ROW_VECTORS; v++) {
        row_sum[v] = sum_over_row(lane, row_sum[v]);
    }
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        let row = tile.start + y + r * THREADS_Y;
        if (row < tile.rows) {
            let first = output_row(tile, row);
            let end = with_sink(tile, row, row_max[r / 4u][r % 4u], row_sum[r / 4u][r % 4u]);
            // unroll
            for (var c = 0u; c < VALUE_VECTORS; c++) {
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    let d = 4u * (x + c * THREADS_X) + e;
                    if (d < VALUE_DIM) {
                        output[first + d] = acc[r][c][e] * end.factor;
                    }
                }
            }
            if (x == 0u && has(WRITE_LOG_SUM_EXP)) {
                store_log_sum_exp(tile, row, end.log_sum_exp);
            }
        }
    }
}
