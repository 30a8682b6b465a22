//! The kernels of the reverse sweep and their tiles, as data.

use std::borrow::Cow;

use crate::kernel::{Access, COMMON, Constant, Constants, IN_ORDER, Kernel};
use crate::recurrent::tile::STAGED_VECTORS;
use crate::recurrent::{Cell, RecurrentConfig, Tier};
use crate::{Capabilities, Variant};

const PROBLEM: &str = include_str!("../../../shaders/recurrent_backward_problem.wgsl");
const SHARES: &str = include_str!("../../../shaders/recurrent_shares.wgsl");
const STEPPED: &str = include_str!("../../../shaders/recurrent_backward_stepped.wgsl");
const RESIDENT: &str = include_str!("../../../shaders/recurrent_backward_resident.wgsl");
const CELL_RNN: &str = include_str!("../../../shaders/recurrent_backward_cell_rnn.wgsl");
const CELL_LSTM: &str = include_str!("../../../shaders/recurrent_backward_cell_lstm.wgsl");
const CELL_GRU: &str = include_str!("../../../shaders/recurrent_backward_cell_gru.wgsl");
const CELL_GRU_RESET_BEFORE: &str =
    include_str!("../../../shaders/recurrent_backward_cell_gru_reset_before.wgsl");
const NO_RESET: &str = include_str!("../../../shaders/recurrent_backward_no_reset.wgsl");
const ACTIVATIONS_NAMED: &str = include_str!("../../../shaders/recurrent_activations_named.wgsl");
const SLOPES_DEFAULT: &str = include_str!("../../../shaders/recurrent_slopes_default.wgsl");
const SLOPES_NAMED: &str = include_str!("../../../shaders/recurrent_slopes_named.wgsl");
const BLOCK_WORKGROUP: &str =
    include_str!("../../../shaders/recurrent_backward_block_workgroup.wgsl");
const BLOCK_SUBGROUP: &str =
    include_str!("../../../shaders/recurrent_backward_block_subgroup.wgsl");
const ADDED: &str = include_str!("../../../shaders/recurrent_backward_added.wgsl");
const REGISTERS: &str = include_str!("../../../shaders/recurrent_backward_sums_registers.wgsl");
const STREAMED: &str = include_str!("../../../shaders/recurrent_backward_sums_streamed.wgsl");

/// What a workgroup of the sweep does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::recurrent) enum Tile {
    /// `recurrent_backward_stepped.wgsl`: a workgroup computes `units` units of `batch` rows; `split` invocations
    /// share the sum of a unit.
    Stepped { units: u32, split: u32, batch: u32 },
    /// `recurrent_backward_resident.wgsl`: a workgroup carries `batch` rows, on a CPU one after the other;
    /// `lanes` invocations sum the columns of weight_hh, each over every `shares`-th gate.
    Resident {
        lanes: u32,
        shares: u32,
        batch: u32,
        registers: bool,
        cpu: bool,
    },
}

/// What the rows of d_gates hold beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::recurrent) struct Kept {
    /// dh, for the norms and a projection
    pub h: bool,
    /// the new c, for the peephole of o
    pub c: bool,
}

impl Tile {
    pub fn stepped(capabilities: &Capabilities, batch: u32) -> Self {
        let batch = batch.clamp(1, 4).next_power_of_two();
        let (units, split) = if capabilities.cpu { (32, 1) } else { (8, 32) };
        Self::Stepped {
            units,
            split,
            batch,
        }
    }

    /// `None` if the gradients of a row do not fit the workgroup memory.
    pub fn resident(
        capabilities: &Capabilities,
        config: &RecurrentConfig,
        batch: u32,
    ) -> Option<Self> {
        let (gates, hidden) = (config.cell.num_gates(), config.hidden_size);
        let state = config.state_size();
        let most = capabilities.workgroup_invocations;
        let padded = hidden.next_multiple_of(8);
        let widest = state.next_multiple_of(32).min(most);
        let shares_of = |lanes: u32| match config.cell {
            // the gates of two phases wait for each other
            Cell::GruResetBefore => 1,
            _ => (1..=gates)
                .rev()
                .find(|&shares| gates.is_multiple_of(shares) && shares * lanes <= most)
                .unwrap_or(1),
        };
        let weights = |lanes: u32| gates / shares_of(lanes) * state.div_ceil(lanes) * padded;
        // as in the forward pass
        let (lanes, most_weights) = if capabilities.cpu {
            let most = 1024;
            let least = (state / gates).next_multiple_of(32).clamp(32, widest);
            let few = (least..widest)
                .step_by(32)
                .find(|&lanes| weights(lanes) <= most);
            (few.unwrap_or(widest), most)
        } else {
            (widest, 65_536 * 3 / 4 / (widest * shares_of(widest)))
        };
        let shares = shares_of(lanes);
        let columns = state.div_ceil(lanes);
        let registers = weights(lanes) <= most_weights;
        let fits = |batch: u32| {
            4 * batch * (gates * padded + shares * columns * lanes) <= capabilities.workgroup_memory
        };
        let batch = [4, 2, 1]
            .into_iter()
            .find(|&each| each <= batch.max(1) && fits(each))?;
        Some(Self::Resident {
            lanes,
            shares,
            batch,
            registers,
            cpu: capabilities.cpu,
        })
    }

    /// Whether a resident sweep beats one dispatch per step, for the reasons of [`RecurrentConfig::tiers`].
    pub fn is_preferred(
        self,
        capabilities: &Capabilities,
        config: &RecurrentConfig,
        batch: u32,
    ) -> bool {
        const MANY_GROUPS: u32 = 64;
        let in_registers = matches!(
            self,
            Self::Resident {
                registers: true,
                ..
            }
        );
        let groups = batch.div_ceil(self.batch()) * config.direction.count();
        capabilities.cpu || in_registers || groups >= MANY_GROUPS
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
                format!(
                    "backward stepped, {units} units x {batch} rows per workgroup, {split} shares"
                )
            }
            Self::Resident {
                batch, registers, ..
            } => {
                let weights = if registers {
                    "in registers"
                } else {
                    "streamed"
                };
                format!("backward resident, weights {weights}, {batch} rows per workgroup")
            }
        }
    }

    pub fn kernel(self, config: &RecurrentConfig, variant: Variant) -> Kernel {
        let cell: &[&'static str] = match config.cell {
            Cell::RnnTanh | Cell::RnnRelu => &[CELL_RNN, NO_RESET],
            Cell::Lstm | Cell::LstmCoupled => &[CELL_LSTM, NO_RESET],
            Cell::Gru => &[CELL_GRU, NO_RESET],
            Cell::GruResetBefore => &[CELL_GRU_RESET_BEFORE],
        };
        let slopes: &[&'static str] = match config.activations {
            None => &[SLOPES_DEFAULT],
            Some(_) => &[ACTIVATIONS_NAMED, SLOPES_NAMED],
        };
        let mut parts = [&[COMMON, PROBLEM], slopes, cell].concat();
        match self {
            Self::Stepped { .. } => parts.extend([SHARES, STEPPED]),
            Self::Resident { registers, .. } => parts.extend([
                match variant {
                    Variant::Subgroup => BLOCK_SUBGROUP,
                    _ => BLOCK_WORKGROUP,
                },
                ADDED,
                IN_ORDER,
                if registers { REGISTERS } else { STREAMED },
                RESIDENT,
            ]),
        }
        let stepped = self.tier() == Tier::Stepped;
        Kernel {
            name: match stepped {
                true => "recurrent_backward_stepped",
                false => "recurrent_backward_resident",
            },
            enables: &[],
            parts: Cow::Owned(parts),
            params: super::sweep::Params::FIELDS,
            storage: &[
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Write,
            ],
            stepped,
        }
    }

    pub fn constants(self, config: &RecurrentConfig, kept: Kept) -> Constants {
        let cell = config.cell;
        let gates = cell.num_gates();
        let mut constants = vec![
            ("NUM_GATES", Constant::U32(gates)),
            ("NUM_PHASES", Constant::U32(config.backward_phases())),
            ("HAS_CELL", Constant::Bool(cell.has_cell_state())),
            ("NUM_UNIT_WEIGHTS", Constant::U32(config.num_unit_weights())),
            ("COUPLED", Constant::Bool(cell == Cell::LstmCoupled)),
            ("RELU", Constant::Bool(cell == Cell::RnnRelu)),
            ("SPLIT_N", Constant::Bool(cell == Cell::Gru)),
            ("SLOTS", Constant::U32(config.slots())),
            ("GRADS", Constant::U32(config.grads())),
            ("PROJECTED", Constant::Bool(config.proj_size.is_some())),
            ("KEEP_H", Constant::Bool(kept.h)),
            ("KEEP_C", Constant::Bool(kept.c)),
            ("BATCH", Constant::U32(self.batch())),
        ];
        match self {
            Self::Stepped { units, split, .. } => constants.extend([
                ("UNITS", Constant::U32(units)),
                ("SPLIT", Constant::U32(split)),
                ("K_VECTORS", Constant::U32(STAGED_VECTORS / self.batch())),
            ]),
            Self::Resident {
                lanes,
                shares,
                batch,
                cpu,
                ..
            } => {
                let hidden = config.hidden_size;
                let blocks = hidden.div_ceil(8);
                constants.extend([
                    ("HIDDEN", Constant::U32(hidden)),
                    ("LANES", Constant::U32(lanes)),
                    ("SHARES", Constant::U32(shares)),
                    ("STATE", Constant::U32(config.state_size())),
                    (
                        "COLUMNS",
                        Constant::U32(config.state_size().div_ceil(lanes)),
                    ),
                    ("TOGETHER", Constant::U32(if cpu { 1 } else { batch })),
                    ("IN_ORDER", Constant::Bool(cpu)),
                    ("GATES_EACH", Constant::U32(gates / shares)),
                    ("BLOCKS", Constant::U32(blocks)),
                    ("BLOCK_VECTORS", Constant::U32(2 * blocks)),
                    (
                        "PAIRS",
                        Constant::U32((batch * hidden).div_ceil(lanes * shares)),
                    ),
                ]);
            }
        }
        constants
    }
}

impl RecurrentConfig {
    /// Products per step, each of which waits for the one before.
    pub(in crate::recurrent) fn backward_phases(&self) -> u32 {
        1 + u32::from(self.cell == Cell::GruResetBefore || self.proj_size.is_some())
    }

    /// Gradients of gates per unit: a GRU's n has two, and beside those of one that resets before the product
    /// stands r h.
    pub(in crate::recurrent) fn grads(&self) -> u32 {
        match self.cell {
            Cell::Gru | Cell::GruResetBefore => 4,
            _ => self.cell.num_gates(),
        }
    }

    /// What the sweep reads of the rows that the forward pass has left, in vectors of the units.
    fn slots(&self) -> u32 {
        match self.cell {
            Cell::RnnTanh | Cell::RnnRelu => 1,
            Cell::Lstm | Cell::LstmCoupled | Cell::Gru => 5,
            Cell::GruResetBefore => 4,
        }
    }

    /// Elements per token of the rows of d_gates, the last [`state_size`](Self::state_size) of them dh if it is
    /// kept.
    pub(in crate::recurrent) fn grads_len(&self, kept: Kept) -> u32 {
        let units = self.grads() + u32::from(kept.c) + u32::from(self.proj_size.is_some());
        units * self.hidden_size + if kept.h { self.state_size() } else { 0 }
    }
}
