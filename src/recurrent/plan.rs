//! Which tier, chunks and grids a call runs with.

use std::ops::Range;

use super::pack::PART;
use super::tile::Tile;
use super::{Cell, Direction, Given, RecurrentConfig, RecurrentShape, Tier};
use crate::gemm::{GemmConfig, GemmShape, Part, Product};
use crate::kernel::{Dispatch, MAX_STEPS, Operand, fold_grid, params};
use crate::{Capabilities, Error, Plan, Variant};

/// The most bytes of gates_x that are computed ahead of the steps that use them.
const CHUNK_SIZE: u64 = 64 << 20;

/// The most multiply-adds of one resident workgroup in one dispatch, some tenths of a second of a slow GPU:
/// drivers reset a device that does not answer for two seconds.
const RESIDENT_WORK: u64 = 1 << 32;

params! {
    pub(super) struct Params {
        hidden_size: u32,
        batch: u32,
        seq_len: u32,
        num_directions: u32,
        direction: u32,
        reverse: u32,
        num_groups: u32,
        unit_tiles: u32,
        batch_tiles: u32,
        first_step: u32,
        num_steps: u32,
        chunk_start: u32,
        chunk_steps: u32,
        output_time: u32,
        clip: f32,
        flags: u32,
        gates_first: u32,
        weights_direction: u32,
        unit_weights_first: u32,
        h_0_first: u32,
        c_0_first: u32,
        h_n_first: u32,
        c_n_first: u32,
        output_first: u32,
        activations: u32,
    }
}

const HAS_H_0: u32 = 1;
const HAS_C_0: u32 = 2;
const HAS_LENGTHS: u32 = 4;
const WRITE_H_N: u32 = 8;
const WRITE_C_N: u32 = 16;

/// Where the parts of the scratch buffer lie, in elements; states come first.
#[derive(Debug, Clone, Copy)]
struct Scratch {
    gates: u64,
    /// end of the gates of a chunk, start of the output of inner layers
    layer_output: u64,
    len: u64,
}

impl RecurrentConfig {
    /// The variants that a device can run, best first.
    pub fn variants(&self, capabilities: &Capabilities) -> impl Iterator<Item = Variant> + use<> {
        // h is handed round in eights, which pays where the subgroup is no larger
        let eights = capabilities.fixed_subgroup_size() == Some(8);
        eights
            .then_some(Variant::Subgroup)
            .into_iter()
            .chain([Variant::Portable])
    }

    /// The tiers that a device can run, in the order of preference for `batch` rows.
    ///
    /// A CPU has no use for many workgroups per step, and dispatches cost it tens of microseconds. On a GPU a
    /// resident workgroup is one core: it wins while its weights stay in registers, or where there are
    /// enough rows to fill the device with workgroups.
    pub fn tiers(
        &self,
        capabilities: &Capabilities,
        batch: u32,
    ) -> impl Iterator<Item = Tier> + use<> {
        const MANY_GROUPS: u32 = 64;
        let resident = Tile::resident(capabilities, self, batch);
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
        before.into_iter().chain([Tier::Stepped]).chain(behind)
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
        let variant = Variant::choose(self.variant, self.variants(capabilities), "a recurrence")?;
        let tile = self.choose_tile(capabilities, shape.batch)?;
        let chunk_steps = self.chunk_steps(capabilities, shape);
        let scratch = self.scratch(shape, chunk_steps);
        let planner = Planner {
            config: self,
            capabilities,
            shape,
            given,
            tile,
            variant,
            scratch,
        };
        let mut dispatches = Vec::new();
        if shape.batch > 0 {
            for layer in 0..self.num_layers {
                planner.layer(layer, chunk_steps, &mut dispatches);
            }
        }
        let rows = f64::from(shape.batch) * f64::from(shape.seq_len);
        let width = f64::from(self.direction.count()) * f64::from(self.hidden_size);
        let inputs: f64 = (0..self.num_layers)
            .map(|l| f64::from(self.layer_input_size(l)))
            .sum();
        let inner = inputs + f64::from(self.num_layers) * f64::from(self.hidden_size);
        Ok(Plan {
            variant,
            describe: tile.describe(),
            dispatches,
            scratch_size: 4 * scratch.len,
            flops: 2.0 * rows * f64::from(self.cell.num_gates()) * width * inner,
            bytes: self.packed_size() as f64 + 4.0 * rows * (f64::from(self.input_size) + width),
        })
    }

    fn check(&self, shape: RecurrentShape, given: &Given) -> Result<(), Error> {
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
        for (name, size) in [("seq_len", shape.seq_len), ("batch", shape.batch)] {
            if size >= 1 << 30 {
                return Err(Error::shape(name, size, "less than 2^30"));
            }
        }
        if !self.cell.has_cell_state() {
            let peephole = ("peephole", self.peephole);
            for (name, given) in [("c_0", given.c_0), ("c_n", given.c_n), peephole] {
                if given {
                    return Err(Error::Operand {
                        name,
                        problem: "only an LSTM has a cell state",
                    });
                }
            }
        }
        Ok(())
    }

    fn choose_tile(&self, capabilities: &Capabilities, batch: u32) -> Result<Tile, Error> {
        let best = || {
            self.tiers(capabilities, batch)
                .next()
                .unwrap_or(Tier::Stepped)
        };
        match self.tier.unwrap_or_else(best) {
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
    fn gates_per_step(&self, batch: u32) -> u64 {
        u64::from(batch) * u64::from(self.cell.num_gates()) * u64::from(self.hidden_size)
    }

    /// Steps whose gates_x are computed at once: as many as fit one binding together with the cell state.
    fn chunk_steps(&self, capabilities: &Capabilities, shape: RecurrentShape) -> u32 {
        let directions = u64::from(self.direction.count());
        let gates = 4 * directions * self.gates_per_step(shape.batch);
        let widest = u64::from(self.input_size).max(directions * u64::from(self.hidden_size));
        let input = 4 * u64::from(shape.batch) * widest;
        let room = capabilities.storage_binding_size.saturating_sub(1024);
        let by_gates = room.saturating_sub(gates).min(CHUNK_SIZE) / gates.max(1);
        let by_input = room / input.max(1);
        by_gates
            .min(by_input)
            .clamp(1, u64::from(shape.seq_len).max(1)) as u32
    }

    fn scratch(&self, shape: RecurrentShape, chunk_steps: u32) -> Scratch {
        let directions = u64::from(self.direction.count());
        let state = directions * u64::from(shape.batch) * u64::from(self.hidden_size);
        let states = match self.cell {
            Cell::Lstm | Cell::LstmCoupled => state,
            // what the first phase of a step leaves to the second
            Cell::GruResetBefore => 2 * state,
            _ => 0,
        };
        let gates = states.next_multiple_of(PART);
        let steps = u64::from(chunk_steps.min(shape.seq_len));
        let gates_len = directions * steps * self.gates_per_step(shape.batch);
        let layer_output = (gates + gates_len).next_multiple_of(PART).max(PART);
        let inner = if self.num_layers > 1 {
            u64::from(shape.seq_len) * state
        } else {
            0
        };
        Scratch {
            gates,
            layer_output,
            len: layer_output + inner,
        }
    }
}

/// What the dispatches of a call depend on.
struct Planner<'a> {
    config: &'a RecurrentConfig,
    capabilities: &'a Capabilities,
    shape: RecurrentShape,
    given: Given,
    tile: Tile,
    variant: Variant,
    scratch: Scratch,
}

impl Planner<'_> {
    fn layer(&self, layer: u32, chunk_steps: u32, out: &mut Vec<Dispatch>) {
        let seq_len = self.shape.seq_len;
        if seq_len == 0 {
            // one empty step hands the initial state on
            out.push(self.steps(layer, 0..self.config.direction.count(), &(0..1), 0..1));
        }
        for chunk in pieces(0..seq_len, chunk_steps) {
            for direction in 0..self.config.direction.count() {
                out.push(self.projection(layer, direction, &chunk));
            }
            for directions in self.joint_directions(layer) {
                for steps in pieces(chunk.clone(), self.steps_each()) {
                    out.push(self.steps(layer, directions.clone(), &chunk, steps));
                }
            }
        }
    }

    /// The directions run together, unless the output is too large to be bound as a whole.
    fn joint_directions(&self, layer: u32) -> Vec<Range<u32>> {
        let count = self.config.direction.count();
        let (_, whole) = self.layer_output(layer, 0..self.shape.seq_len);
        if (whole.end - whole.start) * 4 + 256 <= self.capabilities.storage_binding_size {
            return std::iter::once(0..count).collect();
        }
        (0..count)
            .map(|direction| direction..direction + 1)
            .collect()
    }

    /// The most steps of one entry in the list of dispatches.
    fn steps_each(&self) -> u32 {
        match self.tile {
            Tile::Stepped { .. } => MAX_STEPS / self.config.cell.phases(),
            Tile::Resident { batch, .. } => {
                let hidden = u64::from(self.config.hidden_size);
                (RESIDENT_WORK / (self.config.gates_per_step(batch) * hidden)).clamp(1, 1 << 20)
                    as u32
            }
        }
    }

    /// The tensor that a layer writes, and the elements of `times`. Layers alternate between the output and
    /// scratch so that the last one writes the output.
    fn layer_output(&self, layer: u32, times: Range<u32>) -> Part {
        let width = self.config.direction.count() * self.config.hidden_size;
        let token = u64::from(self.shape.batch) * u64::from(width);
        let (name, first) = if (self.config.num_layers - layer) % 2 == 1 {
            ("output", 0)
        } else {
            ("scratch", self.scratch.layer_output)
        };
        (
            name,
            first + u64::from(times.start) * token..first + u64::from(times.end) * token,
        )
    }

    fn layer_input(&self, layer: u32, times: Range<u32>) -> Part {
        if layer > 0 {
            return self.layer_output(layer - 1, times);
        }
        let token = u64::from(self.shape.batch) * u64::from(self.config.input_size);
        (
            "input",
            u64::from(times.start) * token..u64::from(times.end) * token,
        )
    }

    /// 1 if direction 0 runs in reverse; direction 1 is the other way round.
    fn reverse(&self) -> u32 {
        (self.config.direction == Direction::Reverse).into()
    }

    /// The times of some steps of a direction.
    fn times(&self, direction: u32, steps: &Range<u32>) -> Range<u32> {
        let seq_len = self.shape.seq_len;
        if (direction + self.reverse()) % 2 == 1 {
            seq_len - steps.end..seq_len - steps.start
        } else {
            steps.clone()
        }
    }

    /// gates_x of a chunk: one product.
    fn projection(&self, layer: u32, direction: u32, chunk: &Range<u32>) -> Dispatch {
        let config = self.config;
        let gate_rows = config.cell.num_gates() * config.hidden_size;
        let input_size = config.layer_input_size(layer);
        let packed = config.packed(layer);
        let start = config.packed_start(layer, direction);
        let (bias, weight_ih) = (start + packed.bias, start + packed.weight_ih);
        let weight_len = u64::from(gate_rows) * u64::from(input_size);
        let gates_len = chunk.len() as u64 * config.gates_per_step(self.shape.batch);
        let output = self.scratch.gates + u64::from(direction) * gates_len;
        let gemm = GemmConfig {
            bias: true,
            ..Default::default()
        };
        let rows = chunk.len() as u32 * self.shape.batch;
        let product = Product {
            config: gemm,
            shape: GemmShape::new(&gemm, rows, gate_rows, input_size),
            a: self.layer_input(layer, self.times(direction, chunk)),
            b: ("weights", weight_ih..weight_ih + weight_len),
            bias: Some(("weights", bias..bias + u64::from(gate_rows))),
            output: ("scratch", output..output + gates_len),
        };
        product.dispatch(self.capabilities, self.variant)
    }

    /// Some steps of a chunk whose gates_x are there.
    fn steps(
        &self,
        layer: u32,
        directions: Range<u32>,
        chunk: &Range<u32>,
        steps: Range<u32>,
    ) -> Dispatch {
        let config = self.config;
        let RecurrentShape { seq_len, batch } = self.shape;
        let count = config.direction.count();
        let packed = config.packed(layer);
        let first = config.packed_start(layer, directions.start);
        let end = config.packed_start(layer, directions.end - 1) + packed.weight_ih;
        let (weights, _) = Operand::elements("weights", first..end);

        let state_len = u64::from(count) * u64::from(batch) * u64::from(config.hidden_size);
        let states = u64::from(layer) * state_len..u64::from(layer + 1) * state_len;
        let state = |name, given: bool| match given {
            true => Operand::elements(name, states.clone()),
            false => (Operand::Unused, 0),
        };
        let (h_0, h_0_first) = state("h_0", self.given.h_0);
        let (c_0, c_0_first) = state("c_0", self.given.c_0);
        let (h_n, h_n_first) = state("h_n", self.given.h_n);
        let (c_n, c_n_first) = state("c_n", self.given.c_n);
        let lengths = match self.given.lengths {
            true => Operand::whole("lengths", 4 * u64::from(batch)),
            false => Operand::Unused,
        };
        // the times that are written, and the one before that the first step reads
        let reach = steps.start.saturating_sub(1)..steps.end.min(seq_len);
        let times = directions
            .clone()
            .map(|direction| self.times(direction, &reach));
        let times = times
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(0..0);
        let (name, elements) = self.layer_output(layer, times.clone());
        let (output, output_first) = match elements.is_empty() {
            true => (Operand::Unused, 0),
            false => Operand::elements(name, elements),
        };

        let unit_tiles = match self.tile {
            Tile::Stepped { units, .. } => config.hidden_size.div_ceil(units),
            Tile::Resident { .. } => 1,
        };
        let batch_tiles = batch.div_ceil(self.tile.batch());
        let num_groups = u64::from(unit_tiles) * u64::from(batch_tiles) * directions.len() as u64;
        let gates_direction = chunk.len() as u64 * config.gates_per_step(batch);
        let params = Params {
            hidden_size: config.hidden_size,
            batch,
            seq_len,
            num_directions: count,
            direction: directions.start,
            reverse: self.reverse(),
            num_groups: num_groups as u32,
            unit_tiles,
            batch_tiles,
            first_step: steps.start,
            num_steps: steps.end - steps.start,
            chunk_start: chunk.start,
            chunk_steps: chunk.end - chunk.start,
            output_time: times.start,
            clip: config.clip.unwrap_or(f32::MAX),
            flags: self.flags(),
            gates_first: (self.scratch.gates + u64::from(directions.start) * gates_direction)
                as u32,
            weights_direction: (packed.len / 4) as u32,
            unit_weights_first: (packed.unit_weights / 4) as u32,
            h_0_first,
            c_0_first,
            h_n_first,
            c_n_first,
            output_first,
            activations: config.activation_bits(),
        };
        let scratch = Operand::whole("scratch", 4 * self.scratch.layer_output);
        Dispatch {
            kernel: self.tile.kernel(config, self.variant),
            constants: self.tile.constants(config),
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![weights, h_0, c_0, lengths, scratch, output, h_n, c_n],
            grid: fold_grid(num_groups),
            steps: if self.tile.tier() == Tier::Stepped {
                params.num_steps * config.cell.phases()
            } else {
                1
            },
        }
    }

    fn flags(&self) -> u32 {
        let Given {
            h_0,
            c_0,
            lengths,
            h_n,
            c_n,
        } = self.given;
        [
            (h_0, HAS_H_0),
            (c_0, HAS_C_0),
            (lengths, HAS_LENGTHS),
            (h_n, WRITE_H_N),
            (c_n, WRITE_C_N),
        ]
        .into_iter()
        .filter_map(|(given, flag)| given.then_some(flag))
        .sum()
    }
}

/// `range` in pieces of `each`.
fn pieces(range: Range<u32>, each: u32) -> impl Iterator<Item = Range<u32>> {
    let end = range.end;
    range
        .step_by(each as usize)
        .map(move |start| start..end.min(start.saturating_add(each)))
}
