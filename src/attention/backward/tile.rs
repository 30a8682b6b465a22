//! The kernels of the backward pass and their tiles, as data.

use crate::attention::AttentionShape;
use crate::attention::gathered::Blocks;
use crate::attention::problem::{Params, Problem};
use crate::kernel::{Access, Constant, Constants, Kernel};
use crate::probe::cooperative_part;
use crate::{Capabilities, Variant};

const LANE: &str = include_str!("../../../shaders/attention_lane.wgsl");
const HAND_ROUND: &str = include_str!("../../../shaders/attention_hand_round.wgsl");
const BINDINGS: &str = include_str!("../../../shaders/attention_backward_bindings.wgsl");
const PRODUCTS: &str = include_str!("../../../shaders/attention_backward_products.wgsl");
const CLASSES: &str = include_str!("../../../shaders/attention_backward_classes.wgsl");
const PAIRS: &str = include_str!("../../../shaders/attention_backward_pairs.wgsl");
const QUERY: &str = include_str!("../../../shaders/attention_backward_query.wgsl");
const KEY: &str = include_str!("../../../shaders/attention_backward_key.wgsl");
const BLOCKED: &str = include_str!("../../../shaders/attention_backward.wgsl");
const BROADCAST: &str = include_str!("../../../shaders/attention_backward_broadcast.wgsl");
const COOPERATIVE: &str = include_str!("../../../shaders/attention_backward_cooperative.wgsl");
const COOPERATIVE_STAGE: &str =
    include_str!("../../../shaders/attention_backward_cooperative_stage.wgsl");
const COOPERATIVE_SUMS: &str =
    include_str!("../../../shaders/attention_backward_cooperative_sums.wgsl");
const BIAS: &str = include_str!("../../../shaders/attention_backward_bias.wgsl");

/// Which side's gradients a kernel computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Query,
    Key,
}

/// The shape of a workgroup's share. Both kernels compute the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tile {
    /// `attention_backward.wgsl`.
    Blocked(Blocked),
    /// `attention_backward_broadcast.wgsl`: an invocation of a subgroup of `lanes` computes four whole rows.
    Broadcast { lanes: u32 },
    /// `attention_backward_cooperative.wgsl`.
    Cooperative(Cooperative),
}

/// The largest `head_dim + value_dim` for which a lane keeps four rows of both vectors and of both gradients. The
/// kernel is unrolled over both, so it also bounds compile time.
const BROADCAST_DIMS: u32 = 128;

impl Tile {
    pub fn choose(
        capabilities: &Capabilities,
        variant: Variant,
        side: Side,
        [head_dim, value_dim]: [u32; 2],
        shape: &AttentionShape,
    ) -> Self {
        let dims = [head_dim, value_dim];
        if variant == Variant::Cooperative
            && let Some(tile) = Cooperative::choose(capabilities, side, dims)
        {
            return Self::Cooperative(tile);
        }
        match (variant, capabilities.fixed_subgroup_size()) {
            (Variant::Subgroup, Some(lanes))
                if capabilities.cpu && lanes <= 8 && head_dim + value_dim <= BROADCAST_DIMS =>
            {
                Self::Broadcast { lanes }
            }
            _ => Self::Blocked(Blocked::choose(
                capabilities,
                side,
                head_dim.max(value_dim),
                shape,
            )),
        }
    }

    pub fn row_tile(self) -> u32 {
        match self {
            Self::Blocked(tile) => tile.row_tile(),
            Self::Broadcast { lanes } => 4 * lanes,
            Self::Cooperative(tile) => tile.row_tile(),
        }
    }

    fn other_tile(self) -> u32 {
        match self {
            Self::Blocked(tile) => tile.other_tile(),
            Self::Broadcast { lanes } => lanes,
            Self::Cooperative(tile) => tile.others,
        }
    }

    /// The blocks of a mask whose classes serve the kernels of both sides and of the bias, if there is one: as small
    /// as the smallest of their tiles. All edges are powers of two, so a tile is a number of whole blocks. One table
    /// is one dispatch and one set of strides; a kernel asks for a few words where its tile is larger.
    pub fn blocks([query, key]: [Self; 2], bias: Option<Blocked>) -> Blocks {
        let bias = bias.map_or(query, Self::Blocked);
        let rows = query.row_tile().min(key.other_tile());
        let keys = query.other_tile().min(key.row_tile());
        Blocks {
            rows: rows.min(bias.row_tile()),
            keys: keys.min(bias.other_tile()),
        }
    }

    pub fn describe(self) -> String {
        match self {
            Self::Blocked(tile) => format!("{} x {}", tile.row_tile(), tile.other_tile()),
            Self::Broadcast { lanes } => format!("{} x {lanes} by broadcast", 4 * lanes),
            Self::Cooperative(tile) => format!(
                "{} x {} in matrices of {}",
                tile.row_tile(),
                tile.others,
                tile.edge
            ),
        }
    }

    pub fn kernel(self, side: Side, problem: &Problem<'_>) -> Kernel {
        let of_side = match side {
            Side::Query => QUERY,
            Side::Key => KEY,
        };
        match self {
            Self::Blocked(_) => kernel(
                "attention_backward",
                problem,
                vec![LANE, BINDINGS, CLASSES, PAIRS, PRODUCTS, of_side, BLOCKED],
            ),
            Self::Broadcast { .. } => kernel(
                "attention_backward_broadcast",
                problem,
                vec![HAND_ROUND, BINDINGS, CLASSES, of_side, BROADCAST],
            ),
            Self::Cooperative(tile) => Kernel {
                enables: Capabilities::COOPERATIVE_ENABLES,
                ..kernel(
                    "attention_backward_cooperative",
                    problem,
                    vec![
                        LANE,
                        cooperative_part(tile.edge),
                        BINDINGS,
                        CLASSES,
                        PAIRS,
                        of_side,
                        COOPERATIVE_STAGE,
                        COOPERATIVE_SUMS,
                        COOPERATIVE,
                    ],
                )
            },
        }
    }

    pub fn constants(self, side: Side, [head_dim, value_dim]: [u32; 2]) -> Constants {
        let mut constants = match self {
            Self::Blocked(tile) => tile.constants(),
            Self::Broadcast { lanes } => vec![
                ("FOLDED", Constant::Bool(false)),
                ("WORKGROUP_SIZE", Constant::U32(lanes)),
                ("LANES", Constant::U32(lanes)),
                ("HEAD_VECTORS", Constant::U32(head_dim.div_ceil(4))),
                ("VALUE_VECTORS", Constant::U32(value_dim.div_ceil(4))),
            ],
            Self::Cooperative(tile) => tile.constants(),
        };
        constants.push(("ROWS_ARE_KEYS", Constant::Bool(side == Side::Key)));
        constants
    }
}

/// The gradient of a bias, over tiles as of [`Side::Query`].
pub(super) fn bias_kernel(problem: &Problem<'_>) -> Kernel {
    kernel(
        "attention_backward_bias",
        problem,
        vec![LANE, BINDINGS, CLASSES, PAIRS, PRODUCTS, QUERY, BIAS],
    )
}

fn kernel(name: &'static str, problem: &Problem<'_>, own: Vec<&'static str>) -> Kernel {
    Kernel {
        name,
        enables: &[],
        parts: problem.parts(problem.is_aligned(), own),
        params: Params::FIELDS,
        storage: &[
            Access::Read,
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

/// `rows` x 4 pairs of an invocation, in a tile of `rows * threads_y` rows by `4 * threads_x` others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocked {
    rows: u32,
    threads_x: u32,
    threads_y: u32,
    chunk: u32,
    staged_others: u32,
    vectors: u32,
    /// What is staged is loaded while products are computed.
    prefetch: bool,
}

impl Blocked {
    /// An invocation keeps `rows` x `vectors` vectors of one gradient, of keys of two: about 100 floats, and as
    /// many for the pairs of the moment.
    pub fn choose(
        capabilities: &Capabilities,
        side: Side,
        dims: u32,
        shape: &AttentionShape,
    ) -> Self {
        if let Some(tile) = Self::large(capabilities, side, dims, shape) {
            return tile;
        }
        let threads_x = if dims <= 128 { 8 } else { 16 };
        let threads_y = 64 / threads_x;
        let vectors = dims.div_ceil(4 * threads_x);
        let rows = match (side, vectors) {
            (Side::Query, 0..=2) => 8,
            (Side::Query, _) | (Side::Key, 0..=4) => 4,
            (Side::Key, _) => 2,
        };
        let (row_tile, other_tile) = (rows * threads_y, 4 * threads_x);
        // beside the pairs, a vector of 16 bytes for every four others of a row
        let small = 1024;
        let room = (capabilities.workgroup_memory - small - 16 * row_tile * threads_x) / 16;
        let power_of_two = |most: u32| 1 << most.max(1).ilog2();
        let chunk_vectors = (room / (row_tile + other_tile)).min(8);
        let staged = room / (vectors * threads_x);
        Self {
            rows,
            threads_x,
            threads_y,
            chunk: 4 * power_of_two(chunk_vectors),
            staged_others: power_of_two(staged.min(other_tile)),
            vectors,
            prefetch: false,
        }
    }

    /// Where there are enough rows to fill a large GPU. On an H100, 16 heads x 4096 tokens, forward and backward take
    /// 12.2 ms instead of 17.2 with head_dim 64, 23.3 ms instead of 57.9 with head_dim 128.
    fn large(
        capabilities: &Capabilities,
        side: Side,
        dims: u32,
        shape: &AttentionShape,
    ) -> Option<Self> {
        const MANY_GROUPS: u64 = 256;
        let (len, heads) = match side {
            Side::Query => (shape.q_len, shape.num_heads),
            Side::Key => (shape.kv_len, shape.num_kv_heads),
        };
        let vectors = dims.div_ceil(64);
        let tile = Self {
            rows: 8,
            threads_x: 16,
            threads_y: 16,
            chunk: 16,
            staged_others: 32 / vectors,
            vectors,
            prefetch: true,
        };
        let tiles = u64::from(len.div_ceil(tile.row_tile()));
        let groups = tiles * u64::from(shape.batch) * u64::from(heads);
        let fits = !capabilities.cpu && capabilities.workgroup_memory >= 48 * 1024 && dims <= 128;
        (fits && groups >= MANY_GROUPS).then_some(tile)
    }

    pub fn row_tile(self) -> u32 {
        self.rows * self.threads_y
    }

    pub fn other_tile(self) -> u32 {
        4 * self.threads_x
    }

    pub fn constants(self) -> Constants {
        // of an invocation; unused but for a prefetch
        let items = |vectors: u32| match self.prefetch {
            true => vectors / (self.threads_x * self.threads_y),
            false => 1,
        };
        let chunk_items = |rows: u32| items(rows * self.chunk / 4);
        let vector_items = items(self.staged_others * self.vectors * self.threads_x);
        vec![
            ("FOLDED", Constant::Bool(false)),
            ("ROWS", Constant::U32(self.rows)),
            ("THREADS_X", Constant::U32(self.threads_x)),
            ("THREADS_Y", Constant::U32(self.threads_y)),
            ("CHUNK", Constant::U32(self.chunk)),
            ("STAGED_OTHERS", Constant::U32(self.staged_others)),
            ("VECTORS", Constant::U32(self.vectors)),
            ("PREFETCH", Constant::Bool(self.prefetch)),
            ("ROW_ITEMS", Constant::U32(chunk_items(self.row_tile()))),
            ("OTHER_ITEMS", Constant::U32(chunk_items(self.other_tile()))),
            ("VECTOR_ITEMS", Constant::U32(vector_items)),
        ]
    }
}

/// `subgroups` of which each `split` have `edge` rows, against `others` at a time; both vectors of a row are padded
/// to `head` and `value` elements, its gradients to `sums`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cooperative {
    edge: u32,
    subgroups: u32,
    subgroup_size: u32,
    split: u32,
    others: u32,
    head: u32,
    value: u32,
    sums: u32,
}

impl Cooperative {
    /// The longest vectors for which subgroups hold rows and sums in matrices.
    const DIMS: u32 = 128;

    /// `None` on a device without matrix units, and where vectors are too long for registers or workgroup memory.
    /// Of keys with twice 64 elements, each of 32 invocations has 32 registers of 16 rows and 64 of their sums; from
    /// there on two subgroups share the sums.
    pub fn choose(capabilities: &Capabilities, side: Side, dims: [u32; 2]) -> Option<Self> {
        let edge = capabilities.cooperative?;
        let subgroup_size = capabilities.fixed_subgroup_size()?;
        // as many invocations as rows at least
        let threads = if subgroup_size < 16 { 64 } else { 128 };
        let split = if dims[0].max(dims[1]) <= 64 { 1 } else { 2 };
        let subgroups = split * (threads / subgroup_size);
        let [head, value] = dims.map(|dim| dim.next_multiple_of(split * edge));
        if subgroups == 0 || subgroup_size < edge || head.max(value) > Self::DIMS {
            return None;
        }
        let rows = subgroups / split * edge;
        let (sums, factors) = match side {
            Side::Query => (head, 1),
            Side::Key => (head + value, 2),
        };
        // in bytes, beside 16 for each subgroup and what the workgroup shares of its tile
        let small = 1024;
        let fits = |&others: &u32| {
            let halves = others * (head + value + 8) + factors * rows * (others + 8);
            let memory = 2 * halves + 4 * 2 * rows * (others + 4) + small;
            let pairs = rows * others / 4;
            memory <= capabilities.workgroup_memory
                && others % (split * edge) == 0
                && pairs % (subgroups * subgroup_size) == 0
        };
        // the pairs of an invocation are unrolled, which a CPU's driver compiles for seconds
        let most = if capabilities.cpu { 16 } else { 32 };
        let others = [32, 16]
            .into_iter()
            .find(|others| *others <= most && fits(others))?;
        Some(Self {
            edge,
            subgroups,
            subgroup_size,
            split,
            others,
            head,
            value,
            sums,
        })
    }

    fn row_tile(self) -> u32 {
        self.subgroups / self.split * self.edge
    }

    fn constants(self) -> Constants {
        let Self {
            edge,
            subgroups,
            subgroup_size,
            split,
            others,
            head,
            value,
            sums,
        } = self;
        let threads = subgroups * subgroup_size;
        let staged = others * (head + value) / 4;
        vec![
            ("FOLDED", Constant::Bool(false)),
            ("ROWS", Constant::U32(self.row_tile())),
            ("OTHERS", Constant::U32(others)),
            ("SPLIT", Constant::U32(split)),
            ("HEAD_PAD", Constant::U32(head)),
            ("VALUE_PAD", Constant::U32(value)),
            ("PAIR_TILES", Constant::U32((head + value) / edge)),
            ("SUM_TILES", Constant::U32(sums / split / edge)),
            ("SUBGROUPS", Constant::U32(subgroups)),
            ("SUBGROUP_SIZE", Constant::U32(subgroup_size)),
            (
                "ITEMS",
                Constant::U32(self.row_tile() * others / 4 / threads),
            ),
            ("STAGE_ITEMS", Constant::U32(staged.div_ceil(threads))),
        ]
    }
}
