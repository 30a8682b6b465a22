//! The dispatches of a call: projections, then runs of steps.

use std::ops::Range;

use super::carry::carry;
use super::dropout::dropout;
use super::plan::Scratch;
use super::reserve::Reserve;
use super::tile::Tile;
use super::{Direction, Given, RecurrentConfig, RecurrentShape, Tier};
use crate::gemm::{Folded, GemmConfig, GemmShape, Part, Product};
use crate::kernel::{Dispatch, MAX_STEPS, Operand, fold_grid, params};
use crate::{Capabilities, Variant};

/// The most multiply-adds of one resident workgroup in one dispatch, some tenths of a second of a slow GPU:
/// drivers reset a device that does not answer for two seconds.
pub(super) const RESIDENT_WORK: u64 = 1 << 32;

/// Looks at a word that another workgroup is to write; each costs a GPU some tenths of a microsecond.
const SPIN_BOUND: u32 = 1 << 16;

params! {
    pub(super) struct Params {
        hidden_size: u32,
        state_size: u32,
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
        weight_hr_first: u32,
        h_0_first: u32,
        c_0_first: u32,
        h_n_first: u32,
        c_n_first: u32,
        output_first: u32,
        activations: u32,
        row_len: u32,
        exchange_first: u32,
        spin_bound: u32,
        output_time_stride: u32,
        output_row_stride: u32,
    }
}

const HAS_H_0: u32 = 1;
const HAS_C_0: u32 = 2;
const HAS_LENGTHS: u32 = 4;
const WRITE_H_N: u32 = 8;
const WRITE_C_N: u32 = 16;

/// What the dispatches of a call depend on.
pub(super) struct Planner<'a> {
    pub config: &'a RecurrentConfig,
    pub capabilities: &'a Capabilities,
    pub shape: RecurrentShape,
    pub given: Given,
    pub tile: Tile,
    pub variant: Variant,
    pub scratch: Scratch,
    pub reserve: Option<Reserve>,
    pub again: Option<Again>,
}

/// Where the backward pass runs the steps from one checkpoint to the next again, in elements of its scratch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    /// Laid out as the scratch of the forward pass, up to the end of the gates.
    pub rows: u64,
    /// The time before the first step, and those of the steps, of one direction after the other.
    pub output: u64,
}

impl Planner<'_> {
    pub fn layer(&self, layer: u32, chunk_steps: u32, out: &mut Vec<Dispatch>) {
        let seq_len = self.shape.seq_len;
        if seq_len == 0 {
            // one empty step hands the initial state on
            let directions = 0..self.config.direction.count();
            self.push_steps(layer, directions, &(0..1), 0..1, out);
        }
        if seq_len > 0 {
            out.extend(self.keep_initial(layer));
        }
        for chunk in pieces(0..seq_len, chunk_steps) {
            if chunk.start > 0 && self.saves() && self.config.cell.has_cell_state() {
                out.push(self.hand_on(layer, &chunk, chunk_steps));
            }
            for direction in 0..self.config.direction.count() {
                out.push(self.projection(layer, direction, &chunk));
            }
            for directions in self.joint_directions(layer) {
                for steps in self.runs(&chunk) {
                    out.extend(self.keep(layer, &directions, steps.start));
                    self.push_steps(layer, directions.clone(), &chunk, steps, out);
                }
            }
        }
        if self.config.has_dropout() && layer + 1 < self.config.num_layers {
            for times in pieces(0..seq_len, chunk_steps) {
                let (seed, token) = (self.shape.seed, self.output_token());
                let first = u64::from(times.start) * token;
                let output = self.layer_output(layer, times.clone());
                let dropped = self.layer_input(layer + 1, times);
                out.push(dropout(self.config, seed, layer, first, output, dropped));
            }
        }
    }

    /// Some steps of a chunk; where workgroups talk, between a clean slate and what goes on if they give up.
    fn push_steps(
        &self,
        layer: u32,
        directions: Range<u32>,
        chunk: &Range<u32>,
        steps: Range<u32>,
        out: &mut Vec<Dispatch>,
    ) {
        let Tile::Persistent { rounds, .. } = self.tile else {
            out.push(self.steps(layer, directions, chunk, steps));
            return;
        };
        let exchange = self.scratch.exchange..self.scratch.layer_output;
        out.push(carry([None, None], [Some(("scratch", exchange)), None]));
        let rows = u64::from(self.shape.batch.div_ceil(self.tile.batch()));
        let groups = rows * directions.len() as u64;
        let unit_tiles = u64::from(self.unit_tiles());
        let turns = rows.div_ceil(rounds.into()) * directions.len() as u64;
        let mut first = self.steps(layer, directions, chunk, steps);
        first.grid = fold_grid(unit_tiles * turns);
        let mut second = first.clone();
        second.constants = self.tile.resumed().constants(self.config, false);
        second.grid = fold_grid(groups);
        out.extend([first, second]);
    }

    /// The most entries that all layers together can have.
    pub fn num_dispatches(&self, chunk_steps: u32) -> u64 {
        let chunks = u64::from(self.shape.seq_len.div_ceil(chunk_steps));
        let per_piece = match self.tile {
            Tile::Persistent { .. } => 3,
            _ => 1,
        };
        let each = 3 + per_piece * u64::from(chunk_steps.div_ceil(self.steps_each()));
        let layers = u64::from(self.config.num_layers * self.config.direction.count());
        layers * (chunks * each + self.dispatches_kept())
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
    pub fn steps_each(&self) -> u32 {
        match self.tile {
            Tile::Stepped { .. } | Tile::Cooperative { .. } => MAX_STEPS / self.config.phases(),
            // what gives up is carried on by one workgroup
            Tile::Resident { batch, .. } | Tile::Persistent { batch, .. } => {
                let hidden = u64::from(self.config.hidden_size);
                (RESIDENT_WORK / (self.config.gates_per_step(batch) * hidden)).clamp(1, 1 << 20)
                    as u32
            }
        }
    }

    /// Where the states and the gates of a chunk lie.
    pub fn workspace(&self, layer: u32, chunk: &Range<u32>) -> Part {
        let own = self
            .config
            .scratch(self.shape, chunk.end - chunk.start, true);
        let (name, start) = match (&self.reserve, self.again) {
            (_, Some(again)) => ("scratch", again.rows),
            (Some(reserve), None) if self.saves() => ("reserve", reserve.chunk(layer, chunk.start)),
            _ => return ("scratch", 0..self.scratch.layer_output),
        };
        (name, start..start + own.layer_output)
    }

    /// Whether the steps leave what went into the activations and the states before them.
    fn saves(&self) -> bool {
        let whole = |reserve: &Reserve| reserve.checkpoints.is_none();
        self.again.is_some() || self.reserve.as_ref().is_some_and(whole)
    }

    /// The cell state, from the chunk before, which the backward pass will read again, to this one.
    fn hand_on(&self, layer: u32, chunk: &Range<u32>, chunk_steps: u32) -> Dispatch {
        let before = chunk.start - chunk_steps..chunk.start;
        let [from, to] = [&before, chunk].map(|chunk| {
            let (name, range) = self.workspace(layer, chunk);
            Some((name, range.start..range.start + self.scratch.gates))
        });
        carry([None, from], [None, to])
    }

    fn row_len(&self) -> u32 {
        self.config.row_len(self.saves())
    }

    /// 1 if direction 0 runs in reverse; direction 1 is the other way round.
    fn reverse(&self) -> u32 {
        (self.config.direction == Direction::Reverse).into()
    }

    /// The times of some steps of a direction.
    pub fn times(&self, direction: u32, steps: &Range<u32>) -> Range<u32> {
        let seq_len = self.shape.seq_len;
        if (direction + self.reverse()) % 2 == 1 {
            seq_len - steps.end..seq_len - steps.start
        } else {
            steps.clone()
        }
    }

    /// gates_x of a chunk: one product.
    pub fn projection(&self, layer: u32, direction: u32, chunk: &Range<u32>) -> Dispatch {
        let config = self.config;
        let gate_rows = config.cell.num_gates() * config.hidden_size;
        let input_size = config.layer_input_size(layer);
        let packed = config.packed(layer);
        let start = config.packed_start(layer, direction);
        let (bias, weight_ih) = (start + packed.bias, start + packed.weight_ih);
        let weight_len = u64::from(gate_rows) * u64::from(input_size);
        let (workspace, place) = self.workspace(layer, chunk);
        let rows = chunk.len() as u32 * self.shape.batch;
        let gates_len = u64::from(rows) * u64::from(self.row_len());
        let output = place.start + self.scratch.gates + u64::from(direction) * gates_len;
        let gemm = GemmConfig {
            bias: true,
            a_element: config.layer_element(layer),
            ..Default::default()
        };
        let times = self.times(direction, chunk);
        let tokens = self.tokens(&times, input_size, config.reads_rows_first(layer));
        let product = Product {
            config: gemm,
            shape: GemmShape {
                a_stride: tokens.stride,
                output_stride: self.row_len(),
                ..GemmShape::new(&gemm, rows, gate_rows, input_size)
            },
            fold: tokens.fold.map(|fold| (Folded::A, fold)),
            a: self.layer_input(layer, times),
            b: ("weights", weight_ih..weight_ih + weight_len),
            bias: Some(("weights", bias..bias + u64::from(gate_rows))),
            output: (workspace, output..output + gates_len),
        };
        product.dispatch(self.capabilities)
    }

    /// Some steps of a chunk whose gates_x are there.
    pub fn steps(
        &self,
        layer: u32,
        directions: Range<u32>,
        chunk: &Range<u32>,
        steps: Range<u32>,
    ) -> Dispatch {
        let config = self.config;
        let packed = config.packed(layer);
        let first = config.packed_start(layer, directions.start);
        let end = config.packed_start(layer, directions.end - 1) + packed.weight_ih;
        let (weights, _) = Operand::elements("weights", first..end);

        let states = self.states(layer);
        let [h_0_first, c_0_first, h_n_first, c_n_first] = states.each_ref().map(|state| state.1);
        let [h_0, c_0, h_n, c_n] = states.map(|state| state.0);
        let lengths = match self.given.lengths {
            true => Operand::whole("lengths", 4 * u64::from(self.shape.batch)),
            false => Operand::Unused,
        };
        let times = self.touched(&directions, &steps);
        let (name, elements) = match self.again {
            Some(again) => self.output_again(again, &directions, chunk, &times),
            None => self.layer_output(layer, times.clone()),
        };
        let (output, output_first) = match elements.is_empty() {
            true => (Operand::Unused, 0),
            false => Operand::elements(name, elements),
        };

        let params = Params {
            output_time: times.start,
            h_0_first,
            c_0_first,
            h_n_first,
            c_n_first,
            output_first,
            ..self.params(layer, &directions, chunk, &steps)
        };
        let (workspace, place) = self.workspace(layer, chunk);
        let (scratch, _) = Operand::elements(workspace, place);
        Dispatch {
            kernel: self.tile.kernel(config, self.variant),
            constants: self.tile.constants(config, self.saves()),
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![weights, h_0, c_0, lengths, scratch, output, h_n, c_n],
            grid: fold_grid(params.num_groups.into()),
            steps: match self.tile.tier() {
                Tier::Stepped => params.num_steps * config.phases(),
                Tier::Resident | Tier::Persistent => 1,
            },
        }
    }

    fn unit_tiles(&self) -> u32 {
        match self.tile {
            Tile::Stepped { units, .. }
            | Tile::Cooperative { units, .. }
            | Tile::Persistent { units, .. } => self.config.hidden_size.div_ceil(units),
            Tile::Resident { .. } => 1,
        }
    }

    /// All but where the tensors begin in what is bound.
    fn params(
        &self,
        layer: u32,
        directions: &Range<u32>,
        chunk: &Range<u32>,
        steps: &Range<u32>,
    ) -> Params {
        let config = self.config;
        let RecurrentShape { seq_len, batch, .. } = self.shape;
        let packed = config.packed(layer);
        let unit_tiles = self.unit_tiles();
        let batch_tiles = batch.div_ceil(self.tile.batch());
        let num_groups = u64::from(unit_tiles) * u64::from(batch_tiles) * directions.len() as u64;
        let rows = chunk.len() as u64 * u64::from(batch);
        let gates_direction = rows * u64::from(self.row_len());
        let rows_first = self.again.is_none() && config.puts_rows_first(layer);
        let [output_time_stride, output_row_stride] = self.strides(rows_first);
        Params {
            hidden_size: config.hidden_size,
            state_size: config.state_size(),
            batch,
            seq_len,
            num_directions: config.direction.count(),
            direction: directions.start,
            reverse: self.reverse(),
            num_groups: num_groups as u32,
            unit_tiles,
            batch_tiles,
            first_step: steps.start,
            num_steps: steps.end - steps.start,
            chunk_start: chunk.start,
            chunk_steps: chunk.end - chunk.start,
            clip: config.clip.unwrap_or(f32::MAX),
            flags: self.flags(),
            gates_first: (self.scratch.gates + u64::from(directions.start) * gates_direction)
                as u32,
            weights_direction: (packed.len / 4) as u32,
            unit_weights_first: (packed.unit_weights / 4) as u32,
            weight_hr_first: (packed.weight_hr / 4) as u32,
            activations: config.activation_bits(),
            row_len: self.row_len(),
            exchange_first: self.scratch.exchange as u32,
            spin_bound: config.spin_bound.unwrap_or(match self.capabilities.cpu {
                // its workgroups run one after the other: waiting is in vain
                true => 1,
                false => SPIN_BOUND,
            }),
            output_time_stride,
            output_row_stride,
            ..Default::default()
        }
    }

    /// h_0, c_0, h_n and c_n of a layer, and where it begins in what is bound.
    fn states(&self, layer: u32) -> [(Operand, u32); 4] {
        let config = self.config;
        let rows = u64::from(config.direction.count()) * u64::from(self.shape.batch);
        let (h, c) = (config.state_size(), config.hidden_size);
        [
            ("h_0", self.given.h_0, h),
            ("c_0", self.given.c_0, c),
            ("h_n", self.given.h_n, h),
            ("c_n", self.given.c_n, c),
        ]
        .map(|(name, given, width)| {
            let len = rows * u64::from(width);
            if self.again.is_some() && given {
                let (name, own) = self.initial(layer, name);
                return Operand::elements(name, own);
            }
            match given {
                true => Operand::elements(name, u64::from(layer) * len..u64::from(layer + 1) * len),
                false => (Operand::Unused, 0),
            }
        })
    }

    /// The times that some steps write, and the one before that the first step reads.
    pub fn touched(&self, directions: &Range<u32>, steps: &Range<u32>) -> Range<u32> {
        let reach = steps.start.saturating_sub(1)..steps.end.min(self.shape.seq_len);
        directions
            .clone()
            .map(|direction| self.times(direction, &reach))
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(0..0)
    }

    fn flags(&self) -> u32 {
        let Given {
            h_0,
            c_0,
            lengths,
            h_n,
            c_n,
            reserve: _,
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
pub(super) fn pieces(range: Range<u32>, each: u32) -> impl Iterator<Item = Range<u32>> {
    let end = range.end;
    range
        .step_by(each as usize)
        .map(move |start| start..end.min(start.saturating_add(each)))
}
