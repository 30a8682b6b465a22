//! The kernels of attention and their tiles, as data.

use super::gathered::Blocks;
use super::problem::{Params, Problem};
use crate::attention::AttentionShape;
use crate::kernel::{Access, Constant, Constants, Kernel};
use crate::probe::cooperative_part;
use crate::{Capabilities, Variant};

const BINDINGS: &str = include_str!("../../shaders/attention_bindings.wgsl");
const ROWS: &str = include_str!("../../shaders/attention_rows.wgsl");
const STAGE: &str = include_str!("../../shaders/attention_stage.wgsl");
const SUMS: &str = include_str!("../../shaders/attention_sums.wgsl");
const BLOCKED: &str = include_str!("../../shaders/attention.wgsl");
const DECODE: &str = include_str!("../../shaders/attention_decode.wgsl");
const DECODE_REGISTERS: &str = include_str!("../../shaders/attention_decode_registers.wgsl");
const LANE: &str = include_str!("../../shaders/attention_lane.wgsl");
const COOPERATIVE: &str = include_str!("../../shaders/attention_cooperative.wgsl");
const COOPERATIVE_HELD: &str = include_str!("../../shaders/attention_cooperative_held.wgsl");
const COOPERATIVE_PREFETCH: &str =
    include_str!("../../shaders/attention_cooperative_prefetch.wgsl");
const COOPERATIVE_STAGE: &str = include_str!("../../shaders/attention_cooperative_stage.wgsl");
const COOPERATIVE_PRODUCTS: &str =
    include_str!("../../shaders/attention_cooperative_products.wgsl");
const BROADCAST: &str = include_str!("../../shaders/attention_broadcast.wgsl");
const REDUCE_WORKGROUP: &str = include_str!("../../shaders/reduce_workgroup.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("../../shaders/reduce_subgroup.wgsl");
const HAND_ROUND: &str = include_str!("../../shaders/attention_hand_round.wgsl");
const BROADCAST_WORKGROUP: &str = include_str!("../../shaders/attention_broadcast_workgroup.wgsl");
const BROADCAST_SUBGROUP: &str = include_str!("../../shaders/attention_broadcast_subgroup.wgsl");

/// The shape of a workgroup's share, as data. All kernels compute the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tile {
    /// `attention.wgsl`: an invocation computes `rows` x 4 `key_vectors` scores of a tile of `rows * threads_y`
    /// queries by `4 * key_vectors * threads_x` keys, with the head dimension staged `chunk` at a time and `value_keys`
    /// values; with `prefetch` these are loaded while products are computed.
    Blocked {
        rows: u32,
        key_vectors: u32,
        threads_x: u32,
        threads_y: u32,
        chunk: u32,
        value_keys: u32,
        prefetch: bool,
    },
    /// `attention_decode.wgsl`: `threads_x` invocations share the product of each of `keys` with all `rows`, and
    /// `value_lanes` sum the vectors of a value.
    Decode {
        rows: u32,
        keys: u32,
        threads_x: u32,
        value_lanes: u32,
    },
    /// `attention_cooperative.wgsl`: `subgroups` compute products of `rows` by `keys` in tiles of `edge` by `edge`;
    /// `held`: `attention_cooperative_held.wgsl`.
    Cooperative {
        held: bool,
        rows: u32,
        keys: u32,
        edge: u32,
        subgroups: u32,
        subgroup_size: u32,
    },
    /// `attention_broadcast.wgsl`: an invocation computes four whole rows, `keys` keys at a time.
    Broadcast { threads: u32, keys: u32 },
}

/// The largest `head_dim + value_dim` for which four rows of queries and accumulators per lane beat the
/// blocked tile on a CPU. The broadcast kernel is unrolled over both, so it also bounds compile time:
/// through workgroup memory, llvmpipe on LLVM 15 takes 37 s for 64 and 97 s for 128.
const BROADCAST_DIMS: u32 = 256;
const PORTABLE_BROADCAST_DIMS: u32 = 32;

/// Of a decoding workgroup: invocations, and the most vectors of keys, as of values, that one of them has on their way
/// into its registers.
const DECODE_THREADS: u32 = 128;
const DECODE_VECTORS: u32 = 8;

/// The longest padded row for which a subgroup holds its queries and the sums of the values in matrices: of 32
/// invocations each has 32 registers of the one and 64 of the other then.
const HELD_DIMS: u32 = 128;

/// More rows than a decoding tile has are worth a tile that shares keys through workgroup memory.
const DECODE_ROWS: u32 = 16;

impl Tile {
    /// A CPU's lanes are its vector registers: rows across lanes, keys broadcast, one subgroup per workgroup
    /// where the subgroup hands the keys round. A GPU gets register blocks over a staged tile, as large as
    /// its registers (about 200 floats per invocation) and workgroup memory allow; for the few rows of
    /// decoding, one that reads keys and values past the workgroup memory.
    pub fn choose(
        capabilities: &Capabilities,
        variant: Variant,
        [head_dim, value_dim]: [u32; 2],
        shape: &AttentionShape,
    ) -> Self {
        let dims = head_dim + value_dim;
        let rows = u64::from(shape.q_len) * u64::from(shape.group_size());
        let few = Self::decode(capabilities, variant, [head_dim, value_dim], rows);
        let matrices = Self::cooperative(capabilities, [head_dim, value_dim]);
        if let (Variant::Cooperative, Some(tile)) = (variant, few.or(matrices)) {
            return tile.for_queries(shape);
        }
        if capabilities.cpu {
            match (variant, capabilities.fixed_subgroup_size()) {
                (Variant::Subgroup, Some(size)) if size <= 8 && dims <= BROADCAST_DIMS => {
                    return Self::Broadcast {
                        threads: size,
                        keys: size,
                    };
                }
                (Variant::Portable, _) if dims <= PORTABLE_BROADCAST_DIMS => {
                    return Self::Broadcast {
                        threads: 64,
                        keys: 8,
                    };
                }
                _ => {}
            }
        }
        if let Some(tile) = few {
            return tile;
        }
        if let Some(tile) = Self::large(capabilities, variant, value_dim, shape) {
            return tile;
        }
        let wide = value_dim > 256;
        let threads_x = match (variant, wide) {
            (Variant::Portable, false) => 8,
            (Variant::Portable, true) => 16,
            (_, false) => capabilities.lanes_within_subgroup(8),
            (_, true) => capabilities.lanes_within_subgroup(16),
        };
        let threads_y = 64 / threads_x;
        let rows = if value_dim <= 128 { 8 } else { 4 };
        // per step of the head dimension an invocation loads rows + 4 vectors; a long chunk saves barriers
        let (chunk, value_keys) = if capabilities.workgroup_memory >= 32 * 1024 {
            (32.min(head_dim.next_multiple_of(4)), 4 * threads_x)
        } else {
            (8.min(head_dim.next_multiple_of(4)), 4)
        };
        let value_keys = value_keys.min(if value_dim <= 64 { 32 } else { 8 });
        Self::Blocked {
            rows,
            key_vectors: 1,
            threads_x,
            threads_y,
            chunk,
            value_keys,
            prefetch: false,
        }
    }

    /// `None` on a device without matrix units, and for heads too long for its workgroup memory.
    pub fn cooperative(
        capabilities: &Capabilities,
        [head_dim, value_dim]: [u32; 2],
    ) -> Option<Self> {
        let edge = capabilities.cooperative?;
        let subgroup_size = capabilities.fixed_subgroup_size()?;
        let [head, value] = [head_dim, value_dim].map(|dim| dim.next_multiple_of(edge));
        let tile = |held, rows, keys, subgroups| Self::Cooperative {
            held,
            rows,
            keys,
            edge,
            subgroups,
            subgroup_size,
        };
        // in bytes, beside 16 for each subgroup and what the workgroup shares of its tile
        let small = 1024;
        // many rows for each key that is staged: on an H100, 16 heads x 4096 tokens, head_dim 128, 128 x 32 take
        // 1.4 ms, 64 x 64 2.0
        let subgroups = (256 / subgroup_size).min(128 / edge);
        let (rows, keys) = (subgroups * edge, 32);
        let halves = keys * (head.max(value) + 8) + rows * (keys + 8);
        let memory = 2 * halves + 4 * rows * (keys + 4) + small;
        let fits = memory <= capabilities.workgroup_memory && head.max(value) <= HELD_DIMS;
        if fits && subgroups > 0 && subgroup_size >= edge {
            return Some(tile(true, rows, keys, subgroups));
        }
        // as many invocations as rows at least
        let threads = if subgroup_size < 16 { 64 } else { 128 };
        let through_memory = |&(rows, keys): &(u32, u32)| {
            let halves = rows * (head + keys + 16) + keys * (head.max(value) + 8);
            let products = rows * (keys.max(value) + 4);
            let memory = 2 * halves + 4 * (products + threads) + small;
            memory <= capabilities.workgroup_memory
        };
        let (rows, keys) = [(64, 64), (32, 32), (16, 32)]
            .into_iter()
            .find(through_memory)?;
        let subgroups = threads / subgroup_size;
        (subgroups > 0).then(|| tile(false, rows, keys, subgroups))
    }

    /// Queries held in matrices by as few subgroups as `shape` has rows for: those of all heads that share keys where
    /// they are one tile together, else of one head. 64 invocations stay, for all share the work of staging keys and
    /// values: 16 vectors of each are in the registers of one of them then, if heads are as long as they may be.
    fn for_queries(mut self, shape: &AttentionShape) -> Self {
        const FEWEST_THREADS: u32 = 64;
        if let Self::Cooperative {
            held: true,
            rows,
            edge,
            subgroups,
            subgroup_size,
            ..
        } = &mut self
        {
            let queries = u64::from(shape.q_len);
            let together = queries * u64::from(shape.group_size());
            let folds = shape.packed.is_none() && together <= (*rows).into();
            let wanted = if folds { together } else { queries };
            let half_is_enough = |subgroups: u32| {
                let half = subgroups / 2;
                subgroups.is_multiple_of(2)
                    && half * *subgroup_size >= FEWEST_THREADS
                    && u64::from(half * *edge) >= wanted
            };
            while half_is_enough(*subgroups) {
                *subgroups /= 2;
            }
            *rows = *subgroups * *edge;
        }
        self
    }

    /// Where there are enough queries to fill a large GPU, larger blocks: each element that is staged meets more
    /// others, and registers hold what is staged next. On an H100, 16 heads x 4096 tokens, head_dim 64, 128 queries x
    /// 128 keys take 2.5 ms with 8 x 8 scores per invocation, 2.7 ms x 64 keys with 8 x 4; with half the invocations
    /// 3.1 to 3.4 ms, without prefetch 3.5 ms. With head_dim 128 it is 4.9 and 5.1 ms.
    fn large(
        capabilities: &Capabilities,
        variant: Variant,
        value_dim: u32,
        shape: &AttentionShape,
    ) -> Option<Self> {
        const QUERIES: u32 = 128;
        const MANY_GROUPS: u64 = 256;
        let tiles = u64::from(shape.q_len.div_ceil(QUERIES));
        let groups = tiles * u64::from(shape.batch) * u64::from(shape.num_heads);
        if capabilities.cpu
            || capabilities.workgroup_memory < 48 * 1024
            || value_dim > 128
            || groups < MANY_GROUPS
        {
            return None;
        }
        let value_keys = if value_dim <= 64 { 32 } else { 16 };
        let (key_vectors, threads_x, chunk) = match variant {
            // rows are reduced through workgroup memory, which leaves less of it
            Variant::Portable => (1, 8, 32),
            _ if capabilities.lanes_within_subgroup(16) == 16 => (2, 16, 8),
            _ => return None,
        };
        Some(Self::Blocked {
            rows: 8,
            key_vectors,
            threads_x,
            threads_y: 16,
            chunk,
            value_keys,
            prefetch: true,
        })
    }

    /// `None` on a CPU, for too many rows, and where they do not fit the workgroup memory.
    fn decode(
        capabilities: &Capabilities,
        variant: Variant,
        [head_dim, value_dim]: [u32; 2],
        rows: u64,
    ) -> Option<Self> {
        if capabilities.cpu || rows > DECODE_ROWS.into() {
            return None;
        }
        let rows = (rows as u32).next_power_of_two().max(4);
        let threads_x = match variant {
            Variant::Portable => 8,
            _ => capabilities.lanes_within_subgroup(8),
        };
        let pitch = head_dim.next_multiple_of(4 * threads_x);
        // four keys at least for each that sums them
        let lanes = |keys: u32| {
            let wanted = value_dim.div_ceil(4).next_power_of_two();
            wanted.max(4 * DECODE_THREADS / keys)
        };
        let vectors = |keys: u32| keys * (pitch / 4).max(lanes(keys)) / DECODE_THREADS;
        // in bytes: queries or vectors of all invocations for the values, those to reduce, products and weights
        let memory = |keys: u32| {
            let largest = (4 * rows * pitch).max(4 * 16 * DECODE_THREADS);
            largest + 16 * DECODE_THREADS + 2 * 4 * rows * keys + 1024
        };
        // a key at least for each of the invocations that share one
        let fewest = (DECODE_THREADS / threads_x).max(16);
        [128, 64, 32, 16]
            .into_iter()
            .filter(|&keys| keys == fewest || (keys > fewest && vectors(keys) <= DECODE_VECTORS))
            .find(|&keys| keys * rows <= 1024 && memory(keys) <= capabilities.workgroup_memory)
            .map(|keys| Self::Decode {
                rows,
                keys,
                threads_x,
                value_lanes: lanes(keys),
            })
    }

    pub fn queries(self) -> u32 {
        match self {
            Self::Decode { rows, .. } | Self::Cooperative { rows, .. } => rows,
            Self::Blocked {
                rows, threads_y, ..
            } => rows * threads_y,
            Self::Broadcast { threads, .. } => 4 * threads,
        }
    }

    pub fn describe(self) -> String {
        let queries = self.queries();
        match self {
            Self::Decode { keys, .. } => format!("decode, {queries} queries x {keys} keys"),
            Self::Cooperative { keys, edge, .. } => {
                format!("cooperative, {queries} queries x {keys} keys, matrices of {edge}")
            }
            Self::Blocked {
                rows, key_vectors, ..
            } => {
                format!(
                    "blocked, {queries} queries x {} keys, {rows} x {} per thread",
                    self.blocks().keys,
                    4 * key_vectors
                )
            }
            Self::Broadcast { keys, .. } => {
                format!("broadcast, {queries} queries x {keys} keys, 4 rows per lane")
            }
        }
    }

    /// The blocks of a mask that this tile goes through.
    pub fn blocks(self) -> Blocks {
        let keys = match self {
            Self::Decode { keys, .. } | Self::Cooperative { keys, .. } => keys,
            Self::Blocked {
                key_vectors,
                threads_x,
                ..
            } => 4 * key_vectors * threads_x,
            Self::Broadcast { keys, .. } => keys,
        };
        Blocks {
            rows: self.queries(),
            keys,
        }
    }

    pub fn kernel(self, variant: Variant, problem: &Problem<'_>) -> Kernel {
        let (name, own) = match (self, variant) {
            (Self::Blocked { .. }, Variant::Portable) => (
                "attention",
                vec![BINDINGS, ROWS, STAGE, SUMS, REDUCE_WORKGROUP, BLOCKED],
            ),
            (Self::Blocked { .. }, _) => (
                "attention",
                vec![BINDINGS, ROWS, STAGE, SUMS, REDUCE_SUBGROUP, BLOCKED],
            ),
            (Self::Cooperative { held, edge, .. }, _) => {
                let (name, own) = match held {
                    true => (
                        "attention_cooperative_held",
                        vec![COOPERATIVE_PREFETCH, COOPERATIVE_HELD],
                    ),
                    false => (
                        "attention_cooperative",
                        vec![COOPERATIVE_PRODUCTS, COOPERATIVE],
                    ),
                };
                let shared = [
                    BINDINGS,
                    ROWS,
                    LANE,
                    cooperative_part(edge),
                    COOPERATIVE_STAGE,
                ];
                (name, shared.into_iter().chain(own).collect())
            }
            (Self::Decode { .. }, Variant::Portable) => (
                "attention_decode",
                vec![BINDINGS, ROWS, REDUCE_WORKGROUP, DECODE_REGISTERS, DECODE],
            ),
            (Self::Decode { .. }, _) => (
                "attention_decode",
                vec![BINDINGS, ROWS, REDUCE_SUBGROUP, DECODE_REGISTERS, DECODE],
            ),
            (Self::Broadcast { .. }, Variant::Portable) => (
                "attention_broadcast",
                vec![BINDINGS, ROWS, BROADCAST_WORKGROUP, BROADCAST],
            ),
            (Self::Broadcast { .. }, _) => (
                "attention_broadcast",
                vec![BINDINGS, ROWS, HAND_ROUND, BROADCAST_SUBGROUP, BROADCAST],
            ),
        };
        // a lane of a CPU takes its elements one by one
        let aligned = problem.is_aligned() && !matches!(self, Self::Broadcast { .. });
        Kernel {
            name,
            enables: match self {
                Self::Cooperative { .. } => Capabilities::COOPERATIVE_ENABLES,
                _ => &[],
            },
            parts: problem.parts(aligned, own),
            params: Params::FIELDS,
            storage: &[
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Write,
                Access::Write,
            ],
            stepped: false,
        }
    }

    /// Behind those of the problem.
    pub fn constants(self, head_dim: u32, value_dim: u32) -> Constants {
        let mut constants = Vec::new();
        match self {
            Self::Blocked {
                rows,
                key_vectors,
                threads_x,
                threads_y,
                chunk,
                value_keys,
                prefetch,
            } => {
                let value_vectors = value_dim.div_ceil(4 * threads_x);
                // of an invocation; unused but for a prefetch
                let items = |vectors: u32| match prefetch {
                    true => vectors / (threads_x * threads_y),
                    false => 1,
                };
                constants.extend([
                    ("ROWS", Constant::U32(rows)),
                    ("ROW_VECTORS", Constant::U32(rows / 4)),
                    ("KEY_VECTORS", Constant::U32(key_vectors)),
                    ("THREADS_X", Constant::U32(threads_x)),
                    ("THREADS_Y", Constant::U32(threads_y)),
                    ("CHUNK", Constant::U32(chunk)),
                    ("VALUE_VECTORS", Constant::U32(value_vectors)),
                    ("VALUE_KEYS", Constant::U32(value_keys)),
                    ("PREFETCH", Constant::Bool(prefetch)),
                    (
                        "QUERY_ITEMS",
                        Constant::U32(items(rows * threads_y * chunk / 4)),
                    ),
                    (
                        "KEY_ITEMS",
                        Constant::U32(items(key_vectors * threads_x * chunk)),
                    ),
                    (
                        "VALUE_ITEMS",
                        Constant::U32(items(value_keys * value_vectors * threads_x)),
                    ),
                ]);
            }
            Self::Cooperative {
                rows,
                keys,
                edge,
                subgroups,
                subgroup_size,
                held,
            } => {
                let threads = subgroups * subgroup_size;
                let row_lanes = threads / rows;
                let [head, value] = [head_dim, value_dim].map(|dim| dim.next_multiple_of(edge));
                // of an invocation: vectors of a block that it stages, or of its row's output
                let staged = |dim: u32| (keys * dim / 4).div_ceil(threads);
                let value_items = match held {
                    true => staged(value),
                    false => (value / 4).div_ceil(row_lanes),
                };
                constants.extend([
                    ("ROWS", Constant::U32(rows)),
                    ("KEYS", Constant::U32(keys)),
                    ("HEAD_PAD", Constant::U32(head)),
                    ("VALUE_PAD", Constant::U32(value)),
                    ("HEAD_TILES", Constant::U32(head / edge)),
                    ("VALUE_TILES", Constant::U32(value / edge)),
                    ("SUBGROUPS", Constant::U32(subgroups)),
                    ("SUBGROUP_SIZE", Constant::U32(subgroup_size)),
                    ("ITEMS", Constant::U32(keys / 4 / row_lanes)),
                    ("KEY_ITEMS", Constant::U32(staged(head))),
                    ("VALUE_ITEMS", Constant::U32(value_items)),
                ]);
            }
            Self::Decode {
                rows,
                keys,
                threads_x,
                value_lanes,
            } => constants.extend([
                ("ROWS", Constant::U32(rows)),
                ("ROW_VECTORS", Constant::U32(rows / 4)),
                ("THREADS_X", Constant::U32(threads_x)),
                ("THREADS_Y", Constant::U32(DECODE_THREADS / threads_x)),
                ("KEY_TILE", Constant::U32(keys)),
                (
                    "KEYS_EACH",
                    Constant::U32(keys * threads_x / DECODE_THREADS),
                ),
                ("ITEMS", Constant::U32((keys / 4).div_ceil(threads_x))),
                (
                    "HEAD_VECTORS",
                    Constant::U32(head_dim.div_ceil(4 * threads_x)),
                ),
                ("VALUE_LANES", Constant::U32(value_lanes)),
                (
                    "VALUE_VECTORS",
                    Constant::U32(keys * value_lanes / 4 / DECODE_THREADS),
                ),
            ]),
            Self::Broadcast { threads, keys } => constants.extend([
                ("WORKGROUP_SIZE", Constant::U32(threads)),
                ("KEYS", Constant::U32(keys)),
                ("LANES", Constant::U32(keys)),
            ]),
        }
        constants
    }
}
