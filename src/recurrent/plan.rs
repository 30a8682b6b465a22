//! Which tier, tile and chunks a call runs with.

use super::pack::PART;
use super::steps::Planner;
use super::tile::Tile;
use super::{Cell, Given, RecurrentConfig, RecurrentShape, Tier};
use crate::plan::{check_dispatches, check_elements};
use crate::{Capabilities, ElementType, Error, Plan, Variant};

/// The most bytes of gates_x that are computed ahead of the steps that use them.
const CHUNK_SIZE: u64 = 64 << 20;

/// Where the parts of the scratch buffer lie, in elements; states come first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scratch {
    pub gates: u64,
    /// end of the gates of a chunk, start of what the workgroups of a persistent tier hand to each other
    pub exchange: u64,
    /// end of all that, start of the output of inner layers
    pub layer_output: u64,
    len: u64,
}

impl Scratch {
    /// Makes room for what the workgroups of a persistent tier hand to each other.
    fn insert(&mut self, exchange: u64) {
        self.layer_output += exchange;
        self.len += exchange;
    }
}

impl RecurrentConfig {
    /// The variants that a device can run, best first.
    pub fn variants(&self, capabilities: &Capabilities) -> impl Iterator<Item = Variant> + use<> {
        // h is handed round in eights, which pays where the subgroup is no larger
        let eights = capabilities.fixed_subgroup_size() == Some(8);
        // states and weights are to be within the range of f16: only if it is asked for
        let matrices = Tile::cooperative(capabilities, self).map(|_| Variant::Cooperative);
        eights
            .then_some(Variant::Subgroup)
            .into_iter()
            .chain([Variant::Portable])
            .chain(matrices)
    }

    /// The tiers that a device can run, in the order of preference for `batch` rows; on matrix units
    /// ([`Variant::Cooperative`]) the stepped one alone.
    ///
    /// A CPU has no use for many workgroups per step, and dispatches cost it tens of microseconds. On a GPU a
    /// resident workgroup is one core: it wins while its weights stay in registers, or where there are
    /// enough rows to fill the device with workgroups. A persistent one wins while its weights stay in registers and
    /// all rows have workgroups of their own at the same time. Measured on an H100, LSTM in f32, us per step:
    ///
    /// | hidden_size | batch | stepped | persistent | its weights | rows in turn |
    /// |---|---|---|---|---|---|
    /// | 512 | 1 | 5.5 | 3.2 | in registers | 1 |
    /// | 512 | 16 | 9.7 | 5.6 | in registers | 1 |
    /// | 1024 | 1 | 7.5 | 4.4 | in registers | 1 |
    /// | 1024 | 4 | 11.9 | 7.9 | in registers | 1 |
    /// | 1024 | 16 | 18 | 24 | in registers | 4 |
    /// | 2048 | 1 | 30.2 | 29.9 | streamed | 1 |
    /// | 2048 | 4 | 38 | 59 | streamed | 1 |
    pub fn tiers(
        &self,
        capabilities: &Capabilities,
        batch: u32,
    ) -> impl Iterator<Item = Tier> + use<> {
        const MANY_GROUPS: u32 = 64;
        let matrices = self.variant == Some(Variant::Cooperative);
        let resident = Tile::resident(capabilities, self, batch).filter(|_| !matrices);
        let first = resident.is_some_and(|tile| {
            let in_registers = matches!(
                tile,
                Tile::Resident {
                    registers: true,
                    ..
                }
            );
            let groups = batch.div_ceil(tile.batch()) * self.direction.count();
            capabilities.cpu || in_registers || groups >= MANY_GROUPS
        });
        let resident = resident.map(|_| Tier::Resident);
        let (before, behind) = if first {
            (resident, None)
        } else {
            (None, resident)
        };
        // a step of it waits for memory twice where a stepped one waits for a dispatch
        let persistent = Tile::persistent(capabilities, self, batch)
            .filter(|tile| {
                let wanted = tile.concurrent(self, batch);
                let fits =
                    wanted.is_some_and(|wanted| wanted <= capabilities.concurrent_workgroups);
                let wins = matches!(
                    tile,
                    Tile::Persistent {
                        held: 1..,
                        rounds: 1,
                        ..
                    }
                );
                fits && wins && !matrices
            })
            .map(|_| Tier::Persistent);
        before
            .into_iter()
            .chain(persistent)
            .chain([Tier::Stepped])
            .chain(behind)
    }

    /// How a call runs on a device with `capabilities`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Feature`], [`Error::Limit`], [`Error::Operand`].
    pub fn plan(
        &self,
        capabilities: &Capabilities,
        shape: RecurrentShape,
        given: Given,
    ) -> Result<Plan, Error> {
        self.check(shape, &given)?;
        self.check_batch_first(capabilities, shape, self.element)?;
        if given.reserve {
            self.check_reserve(shape)?;
        }
        let save = given.reserve && self.checkpoint_every.is_none();
        let variant = Variant::choose(self.variant, self.variants(capabilities), "a recurrence")?;
        let tile = self.choose_tile(capabilities, shape.batch, given.reserve)?;
        let mut chunk_steps = self.chunk_steps(capabilities, shape, save);
        if tile.tier() == Tier::Persistent {
            // there is as much again to be handed on, at most
            let twice = RecurrentShape {
                seq_len: 2 * shape.seq_len,
                ..shape
            };
            chunk_steps = (self.chunk_steps(capabilities, twice, false) / 2).max(1);
        }
        let mut scratch = self.scratch(shape, chunk_steps, save);
        if tile.tier() == Tier::Persistent {
            scratch.insert(self.exchange_len(shape, tile.batch(), chunk_steps));
        }
        let reserve = given
            .reserve
            .then(|| self.reserve(shape, self.reserve_steps(capabilities, shape)));
        let planner = Planner {
            config: self,
            capabilities,
            shape,
            given,
            tile,
            variant,
            scratch,
            reserve,
            again: None,
        };
        check_dispatches(planner.num_dispatches(chunk_steps))?;
        let mut dispatches = Vec::new();
        if shape.batch > 0 {
            for layer in 0..self.num_layers {
                planner.layer(layer, chunk_steps, &mut dispatches);
            }
        }
        let rows = f64::from(shape.batch) * f64::from(shape.seq_len);
        let width = f64::from(self.direction.count()) * f64::from(self.state_size());
        Ok(Plan {
            variant,
            describe: tile.describe(),
            dispatches,
            scratch_size: match given.reserve {
                true if save => 0,
                // the outputs of inner layers are in the reserve
                true => 4 * scratch.layer_output,
                false => 4 * scratch.len,
            },
            flops: self.flops(shape),
            bytes: 4.0 * self.packed_start(self.num_layers, 0) as f64
                + self.element.size() as f64 * rows * f64::from(self.input_size)
                + 4.0 * rows * width,
        })
    }

    /// Where the batch comes first, the tensors are bound as a whole: the steps of a chunk lie all over them. That of
    /// the input, or its gradient, has elements of a type of its own.
    pub(super) fn check_batch_first(
        &self,
        capabilities: &Capabilities,
        shape: RecurrentShape,
        element: ElementType,
    ) -> Result<(), Error> {
        let tokens = u64::from(shape.seq_len) * u64::from(shape.batch);
        let width = u64::from(self.direction.count()) * u64::from(self.state_size());
        let input = u64::from(self.input_size) * element.size();
        let needed = tokens.saturating_mul(input.max(4 * width));
        // 256 for an aligned start
        let allowed = capabilities
            .storage_binding_size
            .min(1 << 31)
            .saturating_sub(256);
        if self.batch_first && needed > allowed {
            return Err(Error::Limit {
                limit: "max_storage_buffer_binding_size",
                needed,
                allowed,
            });
        }
        Ok(())
    }

    pub(super) fn check(&self, shape: RecurrentShape, given: &Given) -> Result<(), Error> {
        let sizes = [
            ("input_size", self.input_size, 1 << 20),
            ("hidden_size", self.hidden_size, 1 << 14),
            ("num_layers", self.num_layers, 1 << 10),
        ];
        for (name, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(Error::shape(name, size, format!("1 to {most}")));
            }
        }
        if let Some(size) = self.proj_size
            && !(1..=self.hidden_size).contains(&size)
        {
            let expected = format!("1 to hidden_size = {}", self.hidden_size);
            return Err(Error::shape("proj_size", size, expected));
        }
        if self.checkpoint_every == Some(0) {
            return Err(Error::shape("checkpoint_every", 0, "at least 1 step"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::Operand {
                name: "dropout",
                problem: "is a probability from 0 to below 1",
            });
        }
        for (name, size) in [("seq_len", shape.seq_len), ("batch", shape.batch)] {
            if size >= 1 << 30 {
                return Err(Error::shape(name, size, "less than 2^30"));
            }
        }
        let directions = self.direction.count();
        let widest = (self.cell.num_gates() * self.hidden_size).max(self.input_size);
        let tokens = u128::from(shape.seq_len) * u128::from(shape.batch);
        check_elements(tokens * u128::from(directions) * u128::from(widest))?;
        if !self.cell.has_cell_state() {
            let cell_state = "only an LSTM has a cell state";
            for (name, given, problem) in [
                ("c_0", given.c_0, cell_state),
                ("c_n", given.c_n, cell_state),
                ("peephole", self.peephole, cell_state),
                (
                    "proj_size",
                    self.proj_size.is_some(),
                    "only an LSTM has a projection",
                ),
            ] {
                if given {
                    return Err(Error::Operand { name, problem });
                }
            }
        }
        Ok(())
    }

    /// Of a forward pass.
    pub(super) fn flops(&self, shape: RecurrentShape) -> f64 {
        let rows = f64::from(shape.batch) * f64::from(shape.seq_len);
        let units = f64::from(self.direction.count()) * f64::from(self.hidden_size);
        let inputs: f64 = (0..self.num_layers)
            .map(|l| f64::from(self.layer_input_size(l)))
            .sum();
        let inner = inputs + f64::from(self.num_layers) * f64::from(self.state_size());
        let projection = f64::from(self.num_layers) * f64::from(self.proj_size.unwrap_or(0));
        let factors = f64::from(self.cell.num_gates()) * inner + projection;
        2.0 * rows * units * factors
    }

    pub(super) fn choose_tile(
        &self,
        capabilities: &Capabilities,
        batch: u32,
        save: bool,
    ) -> Result<Tile, Error> {
        let best = || {
            let mut tiers = self.tiers(capabilities, batch);
            let able = |tier: &Tier| !save || *tier != Tier::Persistent;
            tiers.find(able).unwrap_or(Tier::Stepped)
        };
        let matrices = self.variant == Some(Variant::Cooperative);
        match self.tier.unwrap_or_else(best) {
            tier if matrices && tier != Tier::Stepped => Err(Error::Feature {
                feature: format!("a {} tier on matrix units", tier.name()).into(),
            }),
            Tier::Stepped if matrices => Tile::cooperative(capabilities, self).ok_or_else(|| {
                let feature = "cooperative matrices".into();
                Error::Feature { feature }
            }),
            Tier::Persistent if save => Err(Error::Feature {
                feature: "a persistent tier that leaves what a backward pass needs".into(),
            }),
            Tier::Persistent => {
                Tile::persistent(capabilities, self, batch).ok_or_else(|| Error::Limit {
                    limit: "max_compute_workgroup_storage_size",
                    needed: 4 * u64::from(self.hidden_size) * u64::from(1 + self.cell.num_gates()),
                    allowed: capabilities.workgroup_memory.into(),
                })
            }
            Tier::Stepped => Ok(Tile::stepped(capabilities, batch)),
            Tier::Resident => {
                Tile::resident(capabilities, self, batch).ok_or_else(|| Error::Limit {
                    limit: "max_compute_workgroup_storage_size",
                    needed: 4 * u64::from(self.hidden_size) * u64::from(1 + self.cell.num_gates()),
                    allowed: capabilities.workgroup_memory.into(),
                })
            }
        }
    }

    /// Elements of gates_x per step and direction.
    pub(super) fn gates_per_step(&self, batch: u32) -> u64 {
        u64::from(batch) * u64::from(self.row_len(false))
    }

    /// Elements of gates_x per token, or of what takes their place for the backward pass.
    pub(super) fn row_len(&self, save: bool) -> u32 {
        // c, the second sum of n, and h
        let more = u32::from(self.cell.has_cell_state()) + u32::from(self.cell == Cell::Gru);
        let gates = self.cell.num_gates() * self.hidden_size;
        match save {
            true => gates + more * self.hidden_size + self.state_size(),
            false => gates,
        }
    }

    /// Steps whose gates_x are computed at once: as many as fit one binding together with the cell state.
    pub(super) fn chunk_steps(
        &self,
        capabilities: &Capabilities,
        shape: RecurrentShape,
        save: bool,
    ) -> u32 {
        let directions = u64::from(self.direction.count());
        let gates = 4 * directions * u64::from(shape.batch) * u64::from(self.row_len(save));
        let widest = u64::from(self.input_size).max(directions * u64::from(self.state_size()));
        let input = 4 * u64::from(shape.batch) * widest;
        let room = capabilities.storage_binding_size.saturating_sub(1024);
        let by_gates = room.saturating_sub(gates).min(CHUNK_SIZE) / gates.max(1);
        let by_input = room / input.max(1);
        by_gates
            .min(by_input)
            .clamp(1, u64::from(shape.seq_len).max(1)) as u32
    }

    pub(super) fn scratch(&self, shape: RecurrentShape, chunk_steps: u32, save: bool) -> Scratch {
        let directions = u64::from(self.direction.count());
        let state = directions * u64::from(shape.batch) * u64::from(self.hidden_size);
        let states = match self.cell {
            // c, of two steps in the persistent tier, and beside it what the first phase of a step leaves to
            // the second
            Cell::Lstm | Cell::LstmCoupled | Cell::GruResetBefore => 2 * state,
            _ => 0,
        };
        let gates = states.next_multiple_of(PART);
        let steps = u64::from(chunk_steps.min(shape.seq_len));
        let rows = directions * steps * u64::from(shape.batch);
        let gates_len = rows * u64::from(self.row_len(save));
        let layer_output = (gates + gates_len).next_multiple_of(PART).max(PART);
        let inner = if self.num_layers > 1 {
            let width = directions * u64::from(self.state_size());
            u64::from(shape.seq_len) * u64::from(shape.batch) * width
        } else {
            0
        };
        Scratch {
            gates,
            exchange: layer_output,
            layer_output,
            len: layer_output + inner,
        }
    }

    /// Elements through which the workgroups of a persistent tier talk in a chunk: where each group of them
    /// stopped, and what each phase of each step leaves to the next.
    fn exchange_len(&self, shape: RecurrentShape, tile_batch: u32, chunk_steps: u32) -> u64 {
        let directions = u64::from(self.direction.count());
        let groups = directions * u64::from(shape.batch.div_ceil(tile_batch));
        let phases = u64::from(chunk_steps) * u64::from(self.phases());
        let handed = phases * u64::from(shape.batch) * u64::from(self.hidden_size);
        groups.next_multiple_of(PART) + (directions * handed).next_multiple_of(PART)
    }
}
