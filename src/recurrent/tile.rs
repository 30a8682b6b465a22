//! The kernels of the steps and their tiles, as data.

use std::borrow::Cow;

use super::{Cell, RecurrentConfig, Tier};
use crate::kernel::{Access, COMMON, Constant, Constants, Kernel};
use crate::{Capabilities, Variant};

const PROBLEM: &str = include_str!("../../shaders/recurrent_problem.wgsl");
const SAVING: &str = include_str!("../../shaders/recurrent_save.wgsl");
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
    /// `recurrent_resident.wgsl`: a workgroup of `threads` carries `batch` rows; an invocation sums `rows` rows
    /// of weight_hh, kept in registers or streamed.
    Resident {
        threads: u32,
        rows: u32,
        batch: u32,
        registers: bool,
    },
}

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
        Self::Stepped {
            units: 16,
            split: 8,
            batch,
        }
    }

    /// `None` if the state of a row does not fit the workgroup memory.
    pub fn resident(
        capabilities: &Capabilities,
        config: &RecurrentConfig,
        batch: u32,
    ) -> Option<Self> {
        let hidden = config.hidden_size;
        let threads = (config.cell.first_gates() * hidden)
            .next_multiple_of(32)
            .min(capabilities.workgroup_invocations);
        let [first_rows, second_rows] = rows(config, threads);
        let rows = first_rows + second_rows;
        let blocks = config.state_size().div_ceil(8);
        // a GPU's registers are shared by all invocations that run at once; a CPU spills to its cache,
        // which serves contiguous vectors faster than gathers from a buffer
        let most_weights = if capabilities.cpu {
            1024
        } else {
            65_536 * 3 / 4 / threads
        };
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
        })
    }

    pub fn batch(self) -> u32 {
        match self {
            Self::Stepped { batch, .. } | Self::Resident { batch, .. } => batch,
        }
    }

    pub fn tier(self) -> Tier {
        match self {
            Self::Stepped { .. } => Tier::Stepped,
            Self::Resident { .. } => Tier::Resident,
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
                    Self::Stepped { .. } => &[COMMON, PROBLEM, SAVING, $($part,)* STEPPED],
                    Self::Resident { registers: true, .. } => match variant {
                        Variant::Subgroup => {
                            &[COMMON, PROBLEM, SAVING, $($part,)* HIDDEN_SUBGROUP, REGISTERS, RESIDENT]
                        }
                        _ => &[COMMON, PROBLEM, SAVING, $($part,)* HIDDEN_WORKGROUP, REGISTERS, RESIDENT],
                    },
                    Self::Resident { registers: false, .. } => match variant {
                        Variant::Subgroup => {
                            &[COMMON, PROBLEM, SAVING, $($part,)* HIDDEN_SUBGROUP, STREAMED, RESIDENT]
                        }
                        _ => &[COMMON, PROBLEM, SAVING, $($part,)* HIDDEN_WORKGROUP, STREAMED, RESIDENT],
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
        let stepped = self.tier() == Tier::Stepped;
        Kernel {
            name: if stepped {
                "recurrent_stepped"
            } else {
                "recurrent_resident"
            },
            enables: &[],
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
            stepped,
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
            Self::Stepped { units, split, .. } => constants.extend([
                ("UNITS", Constant::U32(units)),
                ("SPLIT", Constant::U32(split)),
                ("K_VECTORS", Constant::U32(32)),
            ]),
            Self::Resident {
                threads,
                rows,
                batch,
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
