//! The kernels of the steps and their tiles, as data.

use std::borrow::Cow;

use super::{Cell, RecurrentConfig, Tier};
use crate::kernel::{Access, COMMON, Constant, Constants, IN_ORDER, Kernel};
use crate::probe::{COOPERATIVE_8, COOPERATIVE_16};
use crate::{Capabilities, Variant};

const PROBLEM: &str = include_str!("../../shaders/recurrent_problem.wgsl");
const SAVE: &str = include_str!("../../shaders/recurrent_save.wgsl");
const MEMORY: &str = include_str!("../../shaders/recurrent_memory.wgsl");
const MEMORY_ATOMIC: &str = include_str!("../../shaders/recurrent_memory_atomic.wgsl");
const EXCHANGE: &str = include_str!("../../shaders/recurrent_exchange.wgsl");
const PERSISTENT_SUMS: &str = include_str!("../../shaders/recurrent_persistent_sums.wgsl");
const PERSISTENT: &str = include_str!("../../shaders/recurrent_persistent.wgsl");
const SHARES: &str = include_str!("../../shaders/recurrent_shares.wgsl");
const FACTORS: &str = include_str!("../../shaders/recurrent_stepped_factors.wgsl");
const STEPPED_SUMS: &str = include_str!("../../shaders/recurrent_stepped_sums.wgsl");
const STEPPED_COOPERATIVE: &str = include_str!("../../shaders/recurrent_stepped_cooperative.wgsl");
const STEPPED: &str = include_str!("../../shaders/recurrent_stepped.wgsl");
const RESIDENT: &str = include_str!("../../shaders/recurrent_resident.wgsl");
const CELL_RNN: &str = include_str!("../../shaders/recurrent_cell_rnn.wgsl");
const CELL_LSTM: &str = include_str!("../../shaders/recurrent_cell_lstm.wgsl");
const CELL_GRU: &str = include_str!("../../shaders/recurrent_cell_gru.wgsl");
const CELL_GRU_RESET_BEFORE: &str =
    include_str!("../../shaders/recurrent_cell_gru_reset_before.wgsl");
const ACTIVATIONS_DEFAULT: &str = include_str!("../../shaders/recurrent_activations_default.wgsl");
const ACTIVATIONS_NAMED: &str = include_str!("../../shaders/recurrent_activations_named.wgsl");
const NO_RESET: &str = include_str!("../../shaders/recurrent_no_reset.wgsl");
const HIDDEN_WORKGROUP: &str = include_str!("../../shaders/recurrent_hidden_workgroup.wgsl");
const HIDDEN_SUBGROUP: &str = include_str!("../../shaders/recurrent_hidden_subgroup.wgsl");
const REGISTERS: &str = include_str!("../../shaders/recurrent_sums_registers.wgsl");
const STREAMED: &str = include_str!("../../shaders/recurrent_sums_streamed.wgsl");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tile {
    /// `recurrent_stepped.wgsl`: a workgroup computes `units` units of `batch` rows; `split` invocations share
    /// the sum of a unit.
    Stepped { units: u32, split: u32, batch: u32 },
    /// The same on matrix units: `edge` rows, all gates of `units` units in matrices of `edge`, sums shared by
    /// `subgroups`, each with `matrices` of the factors of a row at a time.
    Cooperative {
        units: u32,
        edge: u32,
        subgroups: u32,
        matrices: u32,
        subgroup_size: u32,
    },
    /// `recurrent_resident.wgsl`: a workgroup of `threads` carries `batch` rows, on a CPU one after the other; an
    /// invocation sums `rows` rows of weight_hh, kept in registers or streamed.
    Resident {
        threads: u32,
        rows: u32,
        batch: u32,
        registers: bool,
        cpu: bool,
    },
    /// `recurrent_persistent.wgsl`: as stepped, through all steps, with `rounds` times `batch` rows in turn; an
    /// invocation holds `held` vectors of the weights of each gate, if any.
    Persistent {
        units: u32,
        split: u32,
        batch: u32,
        rounds: u32,
        held: u32,
        resume: bool,
    },
}

/// Vectors of the factors that a stepped workgroup has in its memory.
pub(super) const STAGED_VECTORS: u32 = 256;

impl Tile {
    pub fn stepped(capabilities: &Capabilities, batch: u32) -> Self {
        let batch = batch.clamp(1, 4).next_power_of_two();
        if capabilities.cpu {
            return Self::Stepped {
                units: 32,
                split: 1,
                batch,
            };
        }
        // the shares of four rows need twice the workgroup memory of those of two
        Self::Stepped {
            units: 8,
            split: if batch > 2 { 16 } else { 32 },
            batch,
        }
    }

    /// `None` on a device without matrix units.
    pub fn cooperative(capabilities: &Capabilities, config: &RecurrentConfig) -> Option<Self> {
        let edge = capabilities.cooperative?;
        let subgroup_size = capabilities.fixed_subgroup_size()?;
        let gates = config.cell.num_gates();
        // few units, so that there are many workgroups: two matrices of an LSTM's four gates
        let units = (2 * edge / gates.next_power_of_two()).clamp(edge / 2, edge);
        let units = if gates.is_power_of_two() { units } else { edge };
        // many subgroups, each with two matrices of a chunk, as far as both halves of it find room
        let fits = |&[subgroups, matrices]: &[u32; 2]| {
            let (columns, pitch) = (units * gates, subgroups * matrices * edge + 8);
            let halves = 2 * (edge + columns) * pitch;
            let sums = subgroups * columns * (edge + 4);
            2 * halves + 4 * sums <= capabilities.workgroup_memory
                && subgroups * subgroup_size <= capabilities.workgroup_invocations.min(256)
        };
        let [subgroups, matrices] = [[8, 2], [8, 1], [4, 2], [4, 1], [2, 1]]
            .into_iter()
            .find(fits)?;
        (subgroup_size >= edge).then_some(Self::Cooperative {
            units,
            edge,
            subgroups,
            matrices,
            subgroup_size,
        })
    }

    /// `None` if the state of a row does not fit the workgroup memory.
    pub fn resident(
        capabilities: &Capabilities,
        config: &RecurrentConfig,
        batch: u32,
    ) -> Option<Self> {
        let blocks = config.state_size().div_ceil(8);
        let per_row = |threads| rows(config, threads).iter().sum::<u32>();
        let widest = (config.cell.first_gates() * config.hidden_size)
            .next_multiple_of(32)
            .min(capabilities.workgroup_invocations);
        // a GPU's registers are shared by all invocations that run at once; a CPU spills to its cache,
        // which serves contiguous vectors faster than gathers from a buffer, and what it has gathered of h
        // serves all rows of an invocation
        let (threads, most_weights) = if capabilities.cpu {
            let most = 1024;
            let least = config.hidden_size.next_multiple_of(32).min(widest);
            let few = (least..widest)
                .step_by(32)
                .find(|&threads| per_row(threads) * blocks * 8 <= most);
            (few.unwrap_or(widest), most)
        } else {
            (widest, 65_536 * 3 / 4 / widest)
        };
        let rows = per_row(threads);
        let registers = rows * blocks * 8 <= most_weights;
        let fits =
            |batch: u32| 4 * batch * (8 * blocks + rows * threads) <= capabilities.workgroup_memory;
        let batch = [4, 2, 1]
            .into_iter()
            .find(|&each| each <= batch.max(1) && fits(each))?;
        Some(Self::Resident {
            threads,
            rows,
            batch,
            registers,
            cpu: capabilities.cpu,
        })
    }

    /// `None` if the state of a row does not fit the workgroup memory.
    pub fn persistent(
        capabilities: &Capabilities,
        config: &RecurrentConfig,
        num_rows: u32,
    ) -> Option<Self> {
        /// Weights that an invocation of 256 keeps in its registers.
        const MOST_WEIGHTS: u32 = 128;
        let gates = config.cell.num_gates();
        let vectors = config.hidden_size.div_ceil(4);
        let held = |split: u32| config.state_size().div_ceil(4).div_ceil(split);
        let fits = |split: u32| held(split) <= MOST_WEIGHTS / (4 * gates);
        // few workgroups, as long as their weights stay in registers
        let shapes = match capabilities.cpu {
            true => &[(32, 1)][..],
            false => &[(32, 8), (16, 16), (8, 32)],
        };
        let best = shapes.iter().copied().find(|&(_, split)| fits(split));
        let (units, split) = best.unwrap_or(shapes[shapes.len() / 2]);
        let most = capabilities.workgroup_memory.saturating_sub(64) / 16;
        let each = u64::from(vectors) + u64::from(units * split * gates / 4 + 1);
        let room = |batch: u32| u64::from(batch) * each <= u64::from(most);
        let batch = [4, 2, 1]
            .into_iter()
            .find(|&each| each <= num_rows.max(1) && room(each))?;
        let held = if fits(split) { held(split) } else { 0 };
        let batch_tiles = num_rows.div_ceil(batch).max(1);
        let groups = config.hidden_size.div_ceil(units) * config.direction.count();
        let at_once = capabilities.concurrent_workgroups / groups;
        let rounds = batch_tiles.div_ceil(at_once.max(1));
        (units * split <= capabilities.workgroup_invocations).then_some(Self::Persistent {
            units,
            split,
            batch,
            rounds,
            held,
            resume: false,
        })
    }

    /// The same for the dispatch that goes on where workgroups gave up.
    pub fn resumed(self) -> Self {
        match self {
            Self::Persistent {
                units,
                split,
                batch,
                ..
            } => Self::Persistent {
                units,
                split,
                batch,
                rounds: 1,
                held: 0,
                resume: true,
            },
            other => other,
        }
    }

    /// Workgroups that a persistent tier wants to run at the same time: `None` for the others.
    pub fn concurrent(self, config: &RecurrentConfig, num_rows: u32) -> Option<u32> {
        let Self::Persistent {
            units,
            batch,
            rounds,
            ..
        } = self
        else {
            return None;
        };
        let groups = config.hidden_size.div_ceil(units) * config.direction.count();
        let turns = num_rows.div_ceil(batch).div_ceil(rounds);
        groups.checked_mul(turns)
    }

    pub fn batch(self) -> u32 {
        match self {
            Self::Stepped { batch, .. }
            | Self::Resident { batch, .. }
            | Self::Persistent { batch, .. } => batch,
            Self::Cooperative { edge, .. } => edge,
        }
    }

    pub fn tier(self) -> Tier {
        match self {
            Self::Stepped { .. } | Self::Cooperative { .. } => Tier::Stepped,
            Self::Resident { .. } => Tier::Resident,
            Self::Persistent { .. } => Tier::Persistent,
        }
    }

    pub fn describe(self) -> String {
        match self {
            Self::Stepped {
                units,
                split,
                batch,
            } => {
                format!("stepped, {units} units x {batch} rows per workgroup, {split} shares")
            }
            Self::Cooperative { units, edge, .. } => {
                format!("stepped, {units} units x {edge} rows per workgroup, matrices of {edge}")
            }
            Self::Resident {
                batch, registers, ..
            } => {
                let weights = if registers {
                    "in registers"
                } else {
                    "streamed"
                };
                format!("resident, weights {weights}, {batch} rows per workgroup")
            }
            Self::Persistent {
                units,
                batch,
                rounds,
                held,
                ..
            } => {
                let weights = if held > 0 { "in registers" } else { "streamed" };
                let turns = match rounds {
                    1 => String::new(),
                    rounds => format!("{rounds} x "),
                };
                format!(
                    "persistent, {units} units x {turns}{batch} rows per workgroup, weights {weights}"
                )
            }
        }
    }

    pub fn kernel(self, config: &RecurrentConfig, variant: Variant) -> Kernel {
        // the parts of a kernel are static data: one list per combination
        macro_rules! parts {
            ($($cell:ident),*) => {
                match config.activations {
                    None => parts!(@ ACTIVATIONS_DEFAULT, $($cell),*),
                    Some(_) => parts!(@ ACTIVATIONS_NAMED, $($cell),*),
                }
            };
            (@ $($part:ident),*) => {
                match self {
                    Self::Stepped { .. } => &[
                        COMMON, MEMORY, PROBLEM, SAVE, $($part,)* FACTORS, SHARES, STEPPED_SUMS, STEPPED,
                    ],
                    Self::Cooperative { edge: 8, .. } => &[
                        COMMON, COOPERATIVE_8, MEMORY, PROBLEM, SAVE, $($part,)* FACTORS,
                        STEPPED_COOPERATIVE, STEPPED,
                    ],
                    Self::Cooperative { .. } => &[
                        COMMON, COOPERATIVE_16, MEMORY, PROBLEM, SAVE, $($part,)* FACTORS,
                        STEPPED_COOPERATIVE, STEPPED,
                    ],
                    Self::Persistent { .. } => &[
                        COMMON, MEMORY_ATOMIC, PROBLEM, $($part,)* EXCHANGE, SHARES,
                        PERSISTENT_SUMS, PERSISTENT,
                    ],
                    Self::Resident { registers: true, .. } => match variant {
                        Variant::Subgroup => {
                            &[COMMON, MEMORY, PROBLEM, SAVE, $($part,)* HIDDEN_SUBGROUP, IN_ORDER, REGISTERS, RESIDENT]
                        }
                        _ => &[COMMON, MEMORY, PROBLEM, SAVE, $($part,)* HIDDEN_WORKGROUP, IN_ORDER, REGISTERS, RESIDENT],
                    },
                    Self::Resident { registers: false, .. } => match variant {
                        Variant::Subgroup => {
                            &[COMMON, MEMORY, PROBLEM, SAVE, $($part,)* HIDDEN_SUBGROUP, STREAMED, RESIDENT]
                        }
                        _ => &[COMMON, MEMORY, PROBLEM, SAVE, $($part,)* HIDDEN_WORKGROUP, STREAMED, RESIDENT],
                    },
                }
            };
        }
        let parts: &'static [&'static str] = match config.cell {
            Cell::RnnTanh | Cell::RnnRelu => parts!(CELL_RNN, NO_RESET),
            Cell::Lstm | Cell::LstmCoupled => parts!(CELL_LSTM, NO_RESET),
            Cell::Gru => parts!(CELL_GRU, NO_RESET),
            Cell::GruResetBefore => parts!(CELL_GRU_RESET_BEFORE),
        };
        Kernel {
            name: match self {
                Self::Stepped { .. } | Self::Cooperative { .. } => "recurrent_stepped",
                Self::Resident { .. } => "recurrent_resident",
                Self::Persistent { .. } => "recurrent_persistent",
            },
            enables: match self {
                Self::Cooperative { .. } => Capabilities::COOPERATIVE_ENABLES,
                _ => &[],
            },
            parts: Cow::Borrowed(parts),
            params: super::steps::Params::FIELDS,
            storage: &[
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Write,
                Access::Write,
                Access::Write,
                Access::Write,
            ],
            stepped: self.tier() == Tier::Stepped,
        }
    }

    /// With `save`, the kernel leaves what the backward pass needs.
    pub fn constants(self, config: &RecurrentConfig, save: bool) -> Constants {
        let cell = config.cell;
        let mut constants = vec![
            ("NUM_GATES", Constant::U32(cell.num_gates())),
            ("FIRST_GATES", Constant::U32(cell.first_gates())),
            ("NUM_PHASES", Constant::U32(config.phases())),
            ("PROJECTED", Constant::Bool(config.proj_size.is_some())),
            ("HAS_CELL", Constant::Bool(cell.has_cell_state())),
            ("NUM_UNIT_WEIGHTS", Constant::U32(config.num_unit_weights())),
            ("COUPLED", Constant::Bool(cell == Cell::LstmCoupled)),
            ("RELU", Constant::Bool(cell == Cell::RnnRelu)),
            ("BATCH", Constant::U32(self.batch())),
            ("SAVE", Constant::Bool(save)),
        ];
        match self {
            Self::Stepped {
                units,
                split,
                batch,
            } => constants.extend([
                ("UNITS", Constant::U32(units)),
                ("SPLIT", Constant::U32(split)),
                ("K_VECTORS", Constant::U32(STAGED_VECTORS / batch)),
            ]),
            Self::Cooperative {
                units,
                edge,
                subgroups,
                matrices,
                subgroup_size,
            } => {
                let columns = units * cell.num_gates();
                let threads = subgroups * subgroup_size;
                let vectors = subgroups * matrices * edge / 4;
                constants.extend([
                    ("UNITS", Constant::U32(units)),
                    ("COLUMN_TILES", Constant::U32(columns / edge)),
                    ("SUBGROUPS", Constant::U32(subgroups)),
                    ("SUBGROUP_SIZE", Constant::U32(subgroup_size)),
                    ("SUBGROUP_K", Constant::U32(matrices * edge)),
                    (
                        "FACTOR_ITEMS",
                        Constant::U32((edge * vectors).div_ceil(threads)),
                    ),
                    (
                        "WEIGHT_ITEMS",
                        Constant::U32((columns * vectors).div_ceil(threads)),
                    ),
                ]);
            }
            Self::Persistent {
                units,
                split,
                rounds,
                held,
                resume,
                ..
            } => constants.extend([
                ("UNITS", Constant::U32(units)),
                ("SPLIT", Constant::U32(split)),
                ("ROUNDS", Constant::U32(rounds)),
                ("K_VECTORS", Constant::U32(config.hidden_size.div_ceil(4))),
                ("HELD", Constant::Bool(held > 0)),
                ("VECTORS", Constant::U32(held.max(1))),
                ("RESUME", Constant::Bool(resume)),
            ]),
            Self::Resident {
                threads,
                rows,
                batch,
                cpu,
                ..
            } => {
                let blocks = config.state_size().div_ceil(8);
                let [first_rows, _] = self::rows(config, threads);
                constants.extend([
                    ("HIDDEN", Constant::U32(config.hidden_size)),
                    ("STATE", Constant::U32(config.state_size())),
                    ("WORKGROUP_SIZE", Constant::U32(threads)),
                    ("ROWS", Constant::U32(rows)),
                    ("FIRST_ROWS", Constant::U32(first_rows)),
                    ("TOGETHER", Constant::U32(if cpu { 1 } else { batch })),
                    ("IN_ORDER", Constant::Bool(cpu)),
                    ("BLOCKS", Constant::U32(blocks)),
                    ("BLOCK_VECTORS", Constant::U32(2 * blocks)),
                    (
                        "PAIRS",
                        Constant::U32((batch * config.hidden_size).div_ceil(threads)),
                    ),
                ]);
            }
        }
        constants
    }
}

/// Rows of weight_hh that an invocation sums in the first and in the second phase of a step.
fn rows(config: &RecurrentConfig, threads: u32) -> [u32; 2] {
    let first = config.cell.first_gates();
    let second = config.cell.num_gates() - first;
    [first, second].map(|gates| (gates * config.hidden_size).div_ceil(threads))
}
