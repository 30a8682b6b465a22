//! The dispatches of the reverse sweep over the steps of a piece.

use std::ops::Range;

use super::planner::{Numbered, Piece, Planner};
use super::tile::Tile;
use crate::kernel::{Dispatch, MAX_STEPS, Operand, fold_grid, params};
use crate::recurrent::steps::{RESIDENT_WORK, pieces};
use crate::recurrent::{RecurrentShape, Tier};

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
        first_place: u32,
        num_places: u32,
        chunk_start: u32,
        chunk_steps: u32,
        piece_start: u32,
        piece_steps: u32,
        grad_output_time: u32,
        clip: f32,
        truncate: u32,
        flags: u32,
        activations: u32,
        weights_direction: u32,
        unit_weights_first: u32,
        weight_hr_first: u32,
        saved_first: u32,
        saved_len: u32,
        carry_c_first: u32,
        grads_first: u32,
        row_len: u32,
        grad_output_first: u32,
        grad_output_time_stride: u32,
        grad_output_row_stride: u32,
    }
}

const HAS_LENGTHS: u32 = 1;
const HAS_GRAD_OUTPUT: u32 = 2;
const HAS_CARRY: u32 = 4;

impl Planner<'_> {
    pub(super) fn places_each(&self) -> u32 {
        match self.tile {
            Tile::Stepped { .. } => MAX_STEPS / self.config.backward_phases() - 1,
            Tile::Resident { batch, .. } => {
                let hidden = u64::from(self.config.hidden_size);
                let work = self.config.gates_per_step(batch) * hidden;
                (RESIDENT_WORK / work).clamp(1, 1 << 20) as u32
            }
        }
    }

    /// The directions run together, unless grad_output is too large to be bound as a whole.
    pub(super) fn joint_directions(&self, layer: u32) -> Vec<Range<u32>> {
        let count = self.config.direction.count();
        let (_, whole) = self.output_gradient(layer, &(0..self.shape.seq_len));
        if (whole.end - whole.start) * 4 + 256 <= self.capabilities.storage_binding_size {
            return std::iter::once(0..count).collect();
        }
        (0..count)
            .map(|direction| direction..direction + 1)
            .collect()
    }

    /// Elements of the rows of d_gates of one direction of a piece, and where they begin.
    pub(super) fn rows(&self, piece: &Piece, direction: u32) -> (u64, u64) {
        let row_len = u64::from(self.config.grads_len(self.config.kept(&self.given)));
        let len = piece.steps.len() as u64 * u64::from(self.shape.batch) * row_len;
        (len, self.scratch.grads + u64::from(direction) * len)
    }

    /// Where what the forward pass has saved of a piece's chunk lies.
    pub(super) fn workspace(&self, piece: &Piece) -> (&'static str, u64) {
        match self.forward.again {
            Some(again) => ("scratch", again.rows),
            None => (
                "reserve",
                self.reserve.chunk(piece.layer, piece.chunk.start),
            ),
        }
    }

    pub(super) fn sweep(&self, piece: &Piece, directions: Range<u32>, out: &mut Vec<Numbered>) {
        let config = self.config;
        let layer = piece.layer;
        let RecurrentShape { seq_len, batch, .. } = self.shape;
        let packed = config.packed_backward(layer);
        let first = config.packed_backward_start(layer, directions.start);
        let last = config.packed_backward_start(layer, directions.end - 1);
        let (weights, _) = Operand::elements("weights", first..last + packed.weight_ih);
        let (saved_name, chunk) = self.workspace(piece);
        let chunk_rows = piece.chunk.len() as u64 * u64::from(batch);
        let saved_len = chunk_rows * u64::from(config.row_len(true));
        let saved_first = self.forward.scratch.gates + u64::from(directions.start) * saved_len;
        let saved_end = self.forward.scratch.gates + u64::from(directions.end) * saved_len;
        let (reserve, _) = Operand::elements(saved_name, chunk..chunk + saved_end);
        let lengths = match self.given.lengths {
            true => Operand::whole("lengths", 4 * u64::from(batch)),
            false => Operand::Unused,
        };
        let times = directions
            .clone()
            .map(|direction| self.times(direction, &piece.steps))
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(0..0);
        let (name, elements) = self.output_gradient(layer, &times);
        let (grad_output, grad_output_first) = match name {
            "" => (Operand::Unused, 0),
            _ => Operand::elements(name, elements),
        };
        let [grad_output_time_stride, grad_output_row_stride] =
            self.forward.strides(config.puts_rows_first(layer));
        let (_, grads_first) = self.rows(piece, directions.start);
        let scratch = Operand::whole("scratch", 4 * self.scratch.masked);

        let unit_tiles = match self.tile {
            Tile::Stepped { units, .. } => config.hidden_size.div_ceil(units),
            Tile::Resident { .. } => 1,
        };
        let batch_tiles = batch.div_ceil(self.tile.batch());
        let num_groups = u64::from(unit_tiles) * u64::from(batch_tiles) * directions.len() as u64;
        let given = &self.given;
        let behind = given.grad_h_n || given.grad_c_n || !piece.first;
        let flags = [
            (given.lengths, HAS_LENGTHS),
            (!name.is_empty(), HAS_GRAD_OUTPUT),
            (behind, HAS_CARRY),
        ];
        let params = Params {
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
            first_place: 0,
            num_places: 0,
            chunk_start: piece.chunk.start,
            chunk_steps: piece.chunk.end - piece.chunk.start,
            piece_start: piece.steps.start,
            piece_steps: piece.steps.end - piece.steps.start,
            grad_output_time: times.start,
            clip: config.clip.unwrap_or(f32::MAX),
            truncate: config.truncate.unwrap_or(u32::MAX),
            flags: flags
                .into_iter()
                .filter_map(|(given, flag)| given.then_some(flag))
                .sum(),
            activations: config.activation_bits(),
            weights_direction: (packed.len / 4) as u32,
            unit_weights_first: (packed.unit_weights / 4) as u32,
            weight_hr_first: (packed.weight_hr / 4) as u32,
            saved_first: saved_first as u32,
            saved_len: config.row_len(true),
            carry_c_first: self.scratch.carry_c as u32,
            grads_first: grads_first as u32,
            row_len: config.grads_len(config.kept(given)),
            grad_output_first,
            grad_output_time_stride,
            grad_output_row_stride,
        };
        let dispatch = Dispatch {
            kernel: self.tile.kernel(config, self.variant),
            constants: self.tile.constants(config, config.kept(given)),
            params: Vec::new(),
            operands: vec![weights, reserve, lengths, grad_output, scratch],
            grid: fold_grid(num_groups),
            steps: 1,
        };
        for places in pieces(0..params.piece_steps, self.places_each()) {
            let last = places.end == params.piece_steps;
            let params = Params {
                first_place: places.start,
                num_places: places.end - places.start,
                // later dispatches of the piece go on from what the first one has left
                flags: match places.start {
                    0 => params.flags,
                    _ => params.flags | HAS_CARRY,
                },
                ..params
            };
            let steps = match self.tile.tier() {
                Tier::Stepped => params.num_places * config.backward_phases() + u32::from(last),
                Tier::Resident | Tier::Persistent => 1,
            };
            let params = bytemuck::bytes_of(&params).to_vec();
            let at = layer * config.direction.count() + directions.start;
            out.push((
                at,
                Dispatch {
                    params,
                    steps,
                    ..dispatch.clone()
                },
            ));
        }
    }
}
