//! The dispatches of a backward pass: per layer the sweep in pieces, and after each piece the products and sums
//! over its tokens.

use std::borrow::Cow;
use std::ops::Range;

use super::RecurrentBackwardGiven;
use super::tile::Tile;
use crate::gemm::{GemmConfig, GemmShape, Part, Product};
use crate::gradient_clip::NORM_PAIR;
use crate::kernel::{
    Access, COMMON, Constant, Dispatch, Kernel, MAX_STEPS, Operand, fold_grid, params,
};
use crate::recurrent::carry::carry;
use crate::recurrent::dropout::dropout;
use crate::recurrent::plan::{Reserve, Scratch};
use crate::recurrent::steps::{RESIDENT_WORK, pieces};
use crate::recurrent::{Cell, Direction, RecurrentConfig, RecurrentShape, Tier};
use crate::{Capabilities, Variant};

params! {
    pub(in crate::recurrent) struct Params {
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
    }
}

const HAS_LENGTHS: u32 = 1;
const HAS_GRAD_OUTPUT: u32 = 2;
const HAS_CARRY: u32 = 4;

params! {
    struct SumParams {
        num_rows: u32,
        num_columns: u32,
        num_groups: u32,
        a_first: u32,
        a_row: u32,
        factor_first: u32,
        factor_row: u32,
        output_first: u32,
    }
}

const SUMS: Kernel = Kernel {
    name: "recurrent_backward_sums",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        include_str!("../../../shaders/recurrent_backward_sums.wgsl"),
    ]),
    params: SumParams::FIELDS,
    storage: &[Access::Read, Access::Read, Access::Write],
    stepped: false,
};

params! {
    struct NormParams {
        num_steps: u32,
        num_rows: u32,
        num_columns: u32,
        a_first: u32,
        a_row: u32,
        output_first: u32,
    }
}

const NORMS: Kernel = Kernel {
    name: "recurrent_backward_norms",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        NORM_PAIR,
        include_str!("../../../shaders/recurrent_backward_norms.wgsl"),
    ]),
    params: NormParams::FIELDS,
    storage: &[Access::Read, Access::Write],
    stepped: false,
};

params! {
    struct MaskParams {
        num_elements: u32,
        batch: u32,
        width: u32,
        first_time: u32,
        input_first: u32,
        output_first: u32,
    }
}

const MASK: Kernel = Kernel {
    name: "recurrent_backward_mask",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        include_str!("../../../shaders/recurrent_backward_mask.wgsl"),
    ]),
    params: MaskParams::FIELDS,
    storage: &[Access::Read, Access::Read, Access::Write],
    stepped: false,
};

/// Where the parts of the scratch buffer lie, in elements; dh comes first.
#[derive(Debug, Clone, Copy)]
pub(in crate::recurrent) struct BackwardScratch {
    pub piece_steps: u32,
    carry_c: u64,
    grads: u64,
    /// end of the rows of d_gates, start of the input without what lies past the end of each sequence
    masked: u64,
    /// start of the gradients of the outputs of inner layers, which alternate between two places; with dropout,
    /// one is of what the next layer reads and the other of what this one puts out
    inner: u64,
    inner_len: u64,
    pub len: u64,
}

impl BackwardScratch {
    pub fn new(
        config: &RecurrentConfig,
        capabilities: &Capabilities,
        shape: RecurrentShape,
        given: &RecurrentBackwardGiven,
        chunk_steps: u32,
    ) -> Self {
        const PART: u64 = crate::recurrent::pack::PART;
        /// The most bytes of d_gates of a piece.
        const PIECE_SIZE: u64 = 64 << 20;
        let directions = u64::from(config.direction.count());
        let (batch, seq_len) = (u64::from(shape.batch), u64::from(shape.seq_len));
        let width = directions * u64::from(config.state_size());
        let carry_c = (batch * width).next_multiple_of(PART);
        let cells = directions * batch * u64::from(config.hidden_size);
        let grads = match config.cell.has_cell_state() {
            true => carry_c + cells.next_multiple_of(PART),
            false => carry_c,
        };
        let step = directions * batch * u64::from(config.grads_len(config.kept(given)));
        let room = capabilities.storage_binding_size.saturating_sub(1024);
        let by_grads = room.saturating_sub(4 * grads).min(PIECE_SIZE) / (4 * step).max(1);
        let piece_steps = by_grads.clamp(1, u64::from(chunk_steps)) as u32;
        let masked = (grads + u64::from(piece_steps) * step)
            .next_multiple_of(PART)
            .max(PART);
        let masked_len = match given.lengths && given.parameters {
            true => u64::from(piece_steps) * batch * u64::from(config.input_size),
            false => 0,
        };
        let inner = masked + masked_len.next_multiple_of(PART);
        let inner_len = (seq_len * batch * width).next_multiple_of(PART);
        let places = match config.has_dropout() {
            true => 2,
            false => (config.num_layers - 1).min(2),
        };
        Self {
            piece_steps,
            carry_c,
            grads,
            masked,
            inner,
            inner_len,
            len: inner + u64::from(places) * inner_len,
        }
    }

    /// Where the gradient of what the layer behind an inner layer reads begins.
    fn read(&self, config: &RecurrentConfig, layer: u32) -> u64 {
        let place = if config.has_dropout() { 0 } else { layer % 2 };
        self.inner + u64::from(place) * self.inner_len
    }

    /// Where the gradient of what an inner layer puts out begins.
    fn put_out(&self, config: &RecurrentConfig, layer: u32) -> u64 {
        let place = if config.has_dropout() { 1 } else { layer % 2 };
        self.inner + u64::from(place) * self.inner_len
    }
}

/// What the dispatches of a call depend on.
pub(in crate::recurrent) struct Planner<'a> {
    pub config: &'a RecurrentConfig,
    pub capabilities: &'a Capabilities,
    pub shape: RecurrentShape,
    pub given: RecurrentBackwardGiven,
    pub tile: Tile,
    pub variant: Variant,
    pub scratch: BackwardScratch,
    pub reserve: Reserve,
    /// of the forward pass, inside the reserve
    pub forward: Scratch,
}

/// A dispatch, and which weights' gradients it writes: `layer * num_directions + direction`.
pub(in crate::recurrent) type Numbered = (u32, Dispatch);

/// Some steps of one layer, all of one chunk.
struct Piece {
    layer: u32,
    chunk: Range<u32>,
    steps: Range<u32>,
    /// the first one that is computed, which is the last one in time
    first: bool,
    /// whether the layer has no other
    only: bool,
}

impl Planner<'_> {
    pub fn layer(&self, layer: u32, out: &mut Vec<Numbered>) {
        let directions = self.config.direction.count();
        let at = layer * directions;
        let (seq_len, batch) = (self.shape.seq_len, self.shape.batch);
        let last_h = self.state(layer, "grad_h_n", self.given.grad_h_n);
        let last_c = self.state(layer, "grad_c_n", self.given.grad_c_n);
        let first_h = self.state(layer, "grad_h_0", self.given.grad_h_0);
        let first_c = self.state(layer, "grad_c_0", self.given.grad_c_0);
        if seq_len == 0 || batch == 0 {
            if batch > 0 {
                self.copy(at, [last_h, last_c], [first_h, first_c], out);
            }
            for direction in 0..directions {
                self.zero_parameters(layer, direction, out);
                if self.given.grad_norms && seq_len > 0 {
                    let nothing = NormParams::default();
                    let norms = self.norms(at + direction, &(0..seq_len), Operand::Unused, nothing);
                    out.push((at + direction, norms));
                }
            }
            return;
        }
        let (carry_h, carry_c) = self.carries();
        if last_h.is_some() || last_c.is_some() {
            self.copy(
                at,
                [last_h, last_c],
                [Some(carry_h.clone()), carry_c.clone()],
                out,
            );
        }
        let mut all = Vec::new();
        for chunk in pieces(0..seq_len, self.reserve.chunk_steps) {
            let each = pieces(chunk.clone(), self.scratch.piece_steps);
            all.extend(each.map(|steps| (chunk.clone(), steps)));
        }
        let only = all.len() == 1;
        let (into, width) = self.input_gradient(layer, 0..0);
        if directions == 2 && !only && !into.0.is_empty() {
            for times in pieces(0..seq_len, self.times_each(width)) {
                let (part, _) = self.input_gradient(layer, times);
                self.copy(at, [None, None], [Some(part), None], out);
            }
        }
        for (i, (chunk, steps)) in all.into_iter().rev().enumerate() {
            let piece = Piece {
                layer,
                chunk,
                steps,
                first: i == 0,
                only,
            };
            for range in self.joint_directions(layer) {
                self.sweep(&piece, range, out);
            }
            for direction in 0..directions {
                self.products(&piece, direction, out);
            }
        }
        self.copy(at, [Some(carry_h), carry_c], [first_h, first_c], out);
        if layer > 0 && self.config.has_dropout() {
            let token = self.output_elements(&(0..1)).end;
            for times in pieces(0..seq_len, self.times_each(width)) {
                let (seed, first) = (self.shape.seed, u64::from(times.start) * token);
                let put_out = self.output_gradient(layer - 1, &times);
                let (read, _) = self.input_gradient(layer, times);
                let drop = dropout(self.config, seed, layer - 1, first, read, put_out);
                out.push((at, drop));
            }
        }
    }

    /// How many times of vectors of `width` elements fit a binding.
    fn times_each(&self, width: u32) -> u32 {
        let token = u64::from(self.shape.batch) * u64::from(width);
        let elements = self.capabilities.storage_binding_size.min(1 << 31) / 4;
        (elements / token.max(1)).clamp(1, 1 << 30) as u32
    }

    /// The most entries that all layers together can have.
    pub fn num_dispatches(&self) -> u64 {
        let seq_len = self.shape.seq_len;
        let chunk_steps = self.reserve.chunk_steps;
        let chunks = u64::from(seq_len.div_ceil(chunk_steps));
        let pieces = chunks * u64::from(chunk_steps.div_ceil(self.scratch.piece_steps));
        let sweeps = u64::from(self.scratch.piece_steps.div_ceil(self.places_each())) + 1;
        let layers = u64::from(self.config.num_layers * self.config.direction.count());
        let widest = self
            .config
            .layer_input_size(0)
            .max(self.config.layer_input_size(1));
        let whole = u64::from(seq_len.div_ceil(self.times_each(widest)));
        layers * (8 + 2 * whole + pieces * (sweeps + 14))
    }

    fn places_each(&self) -> u32 {
        match self.tile {
            Tile::Stepped { .. } => MAX_STEPS / self.config.backward_phases() - 1,
            Tile::Resident { batch, .. } => {
                let hidden = u64::from(self.config.hidden_size);
                let work = self.config.gates_per_step(batch) * hidden;
                (RESIDENT_WORK / work).clamp(1, 1 << 20) as u32
            }
        }
    }

    /// Nothing where there is no destination.
    fn copy(
        &self,
        at: u32,
        [from_h, from_c]: [Option<Part>; 2],
        [to_h, to_c]: [Option<Part>; 2],
        out: &mut Vec<Numbered>,
    ) {
        let empty = |part: &Part| part.1.is_empty();
        if [&to_h, &to_c]
            .iter()
            .all(|to| to.as_ref().is_none_or(empty))
        {
            return;
        }
        // a source without a destination would not be read
        let from_h = from_h.filter(|_| to_h.is_some());
        let from_c = from_c.filter(|_| to_c.is_some());
        if self.config.proj_size.is_none() {
            out.push((at, carry([from_h, from_c], [to_h, to_c])));
            return;
        }
        // of two lengths
        for (from, to) in [(from_h, to_h), (from_c, to_c)] {
            if to.as_ref().is_some_and(|to| !to.1.is_empty()) {
                out.push((at, carry([from, None], [to, None])));
            }
        }
    }

    /// Elements of all rows' hidden states of a layer, and of their cell states.
    fn state_lens(&self) -> [u64; 2] {
        let rows = u64::from(self.config.direction.count()) * u64::from(self.shape.batch);
        [self.config.state_size(), self.config.hidden_size].map(|width| rows * u64::from(width))
    }

    /// The elements of a layer in a tensor that is shaped like h_0, or like c_0.
    fn state(&self, layer: u32, name: &'static str, given: bool) -> Option<Part> {
        let [h, c] = self.state_lens();
        let len = if name.starts_with("grad_c") { c } else { h };
        let own = u64::from(layer) * len..u64::from(layer + 1) * len;
        given.then_some((name, own))
    }

    /// dh and, of an LSTM, dc between the pieces.
    fn carries(&self) -> (Part, Option<Part>) {
        let [h, c] = self.state_lens();
        let own = self.scratch.carry_c..self.scratch.carry_c + c;
        let has_cell = self.config.cell.has_cell_state();
        (("scratch", 0..h), has_cell.then_some(("scratch", own)))
    }

    fn zero_parameters(&self, layer: u32, direction: u32, out: &mut Vec<Numbered>) {
        let at = layer * self.config.direction.count() + direction;
        let rows = u64::from(self.config.cell.num_gates() * self.config.hidden_size);
        let hidden = u64::from(self.config.hidden_size);
        let state = u64::from(self.config.state_size());
        let width = u64::from(self.config.layer_input_size(layer));
        let given = &self.given;
        for (name, len, given) in [
            ("grad_weight_ih", rows * width, given.parameters),
            ("grad_weight_hh", rows * state, given.parameters),
            (
                "grad_weight_hr",
                state * hidden,
                given.parameters && self.config.proj_size.is_some(),
            ),
            ("grad_bias_ih", rows, given.parameters && given.bias),
            ("grad_bias_hh", rows, given.parameters && given.bias),
            (
                "grad_peephole",
                3 * hidden,
                given.parameters && self.config.peephole,
            ),
        ] {
            let to = given.then_some((name, 0..len));
            self.copy(at, [None, None], [to, None], out);
        }
    }

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

    /// The elements of some times of a layer's output.
    fn output_elements(&self, times: &Range<u32>) -> Range<u64> {
        let width = self.config.direction.count() * self.config.state_size();
        let token = u64::from(self.shape.batch) * u64::from(width);
        u64::from(times.start) * token..u64::from(times.end) * token
    }

    /// The gradient of what a layer put out, at some times; an empty name if there is none.
    fn output_gradient(&self, layer: u32, times: &Range<u32>) -> Part {
        let own = self.output_elements(times);
        if layer + 1 < self.config.num_layers {
            let start = self.scratch.put_out(self.config, layer);
            return ("scratch", start + own.start..start + own.end);
        }
        match self.given.grad_output {
            true => ("grad_output", own),
            false => ("", own),
        }
    }

    /// Where the gradient of what a layer reads goes, at some times, and the length of its vectors; an empty name
    /// if nobody wants it.
    fn input_gradient(&self, layer: u32, times: Range<u32>) -> (Part, u32) {
        let width = self.config.layer_input_size(layer);
        if layer > 0 {
            let own = self.output_elements(&times);
            let start = self.scratch.read(self.config, layer - 1);
            return (("scratch", start + own.start..start + own.end), width);
        }
        let token = u64::from(self.shape.batch) * u64::from(width);
        let own = u64::from(times.start) * token..u64::from(times.end) * token;
        match self.given.grad_input {
            true => (("grad_input", own), width),
            false => (("", own), width),
        }
    }

    /// The directions run together, unless grad_output is too large to be bound as a whole.
    fn joint_directions(&self, layer: u32) -> Vec<Range<u32>> {
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
    fn rows(&self, piece: &Piece, direction: u32) -> (u64, u64) {
        let row_len = u64::from(self.config.grads_len(self.config.kept(&self.given)));
        let len = piece.steps.len() as u64 * u64::from(self.shape.batch) * row_len;
        (len, self.scratch.grads + u64::from(direction) * len)
    }

    fn sweep(&self, piece: &Piece, directions: Range<u32>, out: &mut Vec<Numbered>) {
        let config = self.config;
        let layer = piece.layer;
        let RecurrentShape { seq_len, batch, .. } = self.shape;
        let packed = config.packed_backward(layer);
        let first = config.packed_backward_start(layer, directions.start);
        let last = config.packed_backward_start(layer, directions.end - 1);
        let (weights, _) = Operand::elements("weights", first..last + packed.weight_ih);
        let chunk = self.reserve.chunk(layer, piece.chunk.start);
        let chunk_rows = piece.chunk.len() as u64 * u64::from(batch);
        let saved_len = chunk_rows * u64::from(config.row_len(true));
        let saved_first = self.forward.gates + u64::from(directions.start) * saved_len;
        let saved_end = self.forward.gates + u64::from(directions.end) * saved_len;
        let (reserve, _) = Operand::elements("reserve", chunk..chunk + saved_end);
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

    /// What the gradients of a piece's gates give outside of the loop, of one direction.
    fn products(&self, piece: &Piece, direction: u32, out: &mut Vec<Numbered>) {
        let config = self.config;
        let at = piece.layer * config.direction.count() + direction;
        let (hidden, state) = (config.hidden_size, config.state_size());
        let gate_rows = config.cell.num_gates() * hidden;
        let times = self.times(direction, &piece.steps);
        let (_, rows_first) = self.rows(piece, direction);
        let row_len = config.grads_len(config.kept(&self.given));
        let tokens = piece.steps.len() as u32 * self.shape.batch;
        let grads = Matrix {
            name: "scratch",
            first: rows_first,
            row_len,
        };
        let accumulate = !piece.first;
        if self.given.parameters {
            let input = self.layer_input(piece.layer, &times, at, out);
            let width = config.layer_input_size(piece.layer);
            let of_x = self.product_over_tokens(
                [grads, input],
                [tokens, gate_rows, width],
                ("grad_weight_ih", 0),
                accumulate,
            );
            out.push((at, of_x));
            let saved = self.saved(piece, direction);
            let h = saved.column(config.row_len(true) - state);
            let all = [(0, 0, config.cell.num_gates(), h)];
            let n = grads.column(3 * hidden);
            let parts: &[(u32, u32, u32, Matrix)] = match config.cell {
                // of n the gradient by way of h, of n that which multiplies r h
                Cell::Gru => &[(0, 0, 2, h), (3, 2, 1, h)],
                Cell::GruResetBefore => &[(0, 0, 2, h), (2, 2, 1, n)],
                _ => &all,
            };
            for &(slot, gate, gates, factor) in parts {
                let of_h = self.product_over_tokens(
                    [grads.column(slot * hidden), factor],
                    [tokens, gates * hidden, state],
                    ("grad_weight_hh", gate * hidden * state),
                    accumulate,
                );
                out.push((at, of_h));
            }
            if config.proj_size.is_some() {
                let unprojected = config.grads() + u32::from(config.peephole);
                let of_projection = self.product_over_tokens(
                    [
                        grads.column(row_len - state),
                        grads.column(unprojected * hidden),
                    ],
                    [tokens, state, hidden],
                    ("grad_weight_hr", 0),
                    accumulate,
                );
                out.push((at, of_projection));
            }
            self.sums(piece, direction, tokens, grads, out);
        }
        let (into, width) = self.input_gradient(piece.layer, times.clone());
        if !into.0.is_empty() {
            let packed = config.packed_backward(piece.layer);
            let start = config.packed_backward_start(piece.layer, direction) + packed.weight_ih;
            let gemm = GemmConfig {
                accumulate: config.direction.count() == 2 && (direction == 1 || !piece.only),
                ..Default::default()
            };
            let product = Product {
                config: gemm,
                shape: GemmShape {
                    a_stride: row_len,
                    ..GemmShape::new(&gemm, tokens, width, gate_rows)
                },
                a: grads.part(tokens, gate_rows),
                b: (
                    "weights",
                    start..start + u64::from(gate_rows) * u64::from(width),
                ),
                bias: None,
                fold: None,
                output: into,
            };
            out.push((at, product.dispatch(self.capabilities, self.variant)));
        }
        if self.given.grad_norms {
            let a = grads.column(row_len - state);
            let (a, a_first) = Operand::elements(a.name, a.part(tokens, state).1);
            let params = NormParams {
                num_rows: self.shape.batch,
                num_columns: state,
                a_first,
                a_row: row_len,
                ..Default::default()
            };
            out.push((at, self.norms(at, &times, a, params)));
        }
    }

    /// The norms of some times of a layer and direction; of no rows they are 0.
    fn norms(&self, at: u32, times: &Range<u32>, a: Operand, params: NormParams) -> Dispatch {
        let first = u64::from(at) * u64::from(self.shape.seq_len);
        let own = first + u64::from(times.start)..first + u64::from(times.end);
        let (output, output_first) = Operand::elements("grad_norms", own);
        let params = NormParams {
            num_steps: times.end - times.start,
            output_first,
            ..params
        };
        Dispatch {
            kernel: NORMS,
            constants: vec![],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![a, output],
            grid: fold_grid(params.num_steps.into()),
            steps: 1,
        }
    }

    /// What the forward pass has saved of a piece's tokens.
    fn saved(&self, piece: &Piece, direction: u32) -> Matrix {
        let row_len = self.config.row_len(true);
        let batch = u64::from(self.shape.batch);
        let chunk_rows = piece.chunk.len() as u64 * batch;
        let within = match (direction + self.reverse()) % 2 {
            1 => piece.chunk.end - piece.steps.end,
            _ => piece.steps.start - piece.chunk.start,
        };
        let row = u64::from(direction) * chunk_rows + u64::from(within) * batch;
        let chunk = self.reserve.chunk(piece.layer, piece.chunk.start);
        Matrix {
            name: "reserve",
            first: chunk + self.forward.gates + row * u64::from(row_len),
            row_len,
        }
    }

    /// What a layer has read at some times, without what lies past the end of a sequence.
    fn layer_input(
        &self,
        layer: u32,
        times: &Range<u32>,
        at: u32,
        out: &mut Vec<Numbered>,
    ) -> Matrix {
        let batch = self.shape.batch;
        let width = self.config.layer_input_size(layer);
        let token = u64::from(batch) * u64::from(width);
        let first = u64::from(times.start) * token;
        let (name, first) = match layer {
            0 if self.given.lengths => {
                let len = times.len() as u64 * token;
                let (input, input_first) = Operand::elements("input", first..first + len);
                let masked = self.scratch.masked;
                let (output, output_first) = Operand::elements("scratch", masked..masked + len);
                let params = MaskParams {
                    num_elements: len as u32,
                    batch,
                    width,
                    first_time: times.start,
                    input_first,
                    output_first,
                };
                let lengths = Operand::whole("lengths", 4 * u64::from(batch));
                let dispatch = Dispatch {
                    kernel: MASK,
                    constants: vec![],
                    params: bytemuck::bytes_of(&params).to_vec(),
                    operands: vec![input, lengths, output],
                    grid: fold_grid(len.div_ceil(64)),
                    steps: 1,
                };
                out.push((at, dispatch));
                ("scratch", masked)
            }
            0 => ("input", first),
            // zeros past the end
            _ => ("reserve", self.reserve.layer_output(layer - 1) + first),
        };
        Matrix {
            name,
            first,
            row_len: width,
        }
    }

    /// `a^T b` over the tokens, to the rows of a gradient of weights from an element on.
    fn product_over_tokens(
        &self,
        [a, b]: [Matrix; 2],
        [tokens, rows, columns]: [u32; 3],
        (name, first): (&'static str, u32),
        accumulate: bool,
    ) -> Dispatch {
        let gemm = GemmConfig {
            transpose_a: true,
            accumulate,
            ..Default::default()
        };
        let first = u64::from(first);
        let product = Product {
            config: gemm,
            shape: GemmShape {
                a_stride: a.row_len,
                b_stride: b.row_len,
                ..GemmShape::new(&gemm, rows, columns, tokens)
            },
            a: a.part(tokens, rows),
            b: b.part(tokens, columns),
            bias: None,
            fold: None,
            output: (name, first..first + u64::from(rows) * u64::from(columns)),
        };
        product.dispatch(self.capabilities, self.variant)
    }

    /// The gradients of the biases and the peepholes.
    fn sums(
        &self,
        piece: &Piece,
        direction: u32,
        tokens: u32,
        grads: Matrix,
        out: &mut Vec<Numbered>,
    ) {
        let config = self.config;
        let at = piece.layer * config.direction.count() + direction;
        let hidden = config.hidden_size;
        let gates = config.cell.num_gates();
        let mut sum = |a: Matrix, factor: Option<Matrix>, columns: u32, name, first: u32| {
            let (a_operand, a_first) = Operand::elements(a.name, a.part(tokens, columns).1);
            let (factor_operand, factor_first) = match factor {
                Some(factor) => Operand::elements(factor.name, factor.part(tokens, columns).1),
                None => (Operand::Unused, 0),
            };
            let own = u64::from(first)..u64::from(first + columns);
            let (output, output_first) = Operand::elements(name, own);
            let params = SumParams {
                num_rows: tokens,
                num_columns: columns,
                num_groups: columns.div_ceil(32),
                a_first,
                a_row: a.row_len,
                factor_first,
                factor_row: factor.map_or(0, |factor| factor.row_len),
                output_first,
            };
            let dispatch = Dispatch {
                kernel: SUMS,
                constants: vec![
                    ("FACTOR", Constant::Bool(factor.is_some())),
                    ("ACCUMULATE", Constant::Bool(!piece.first)),
                ],
                params: bytemuck::bytes_of(&params).to_vec(),
                operands: vec![a_operand, factor_operand, output],
                grid: fold_grid(params.num_groups.into()),
                steps: 1,
            };
            out.push((at, dispatch));
        };
        if self.given.bias {
            sum(grads, None, gates * hidden, "grad_bias_ih", 0);
            match config.cell {
                Cell::Gru => {
                    sum(grads, None, 2 * hidden, "grad_bias_hh", 0);
                    let n = grads.column(3 * hidden);
                    sum(n, None, hidden, "grad_bias_hh", 2 * hidden);
                }
                _ => sum(grads, None, gates * hidden, "grad_bias_hh", 0),
            }
        }
        if config.peephole {
            let c = self.saved(piece, direction).column(gates * hidden);
            let new_c = grads.column(config.grads() * hidden);
            for (which, gate, c) in [(0, 0, c), (1, 1, c), (2, 3, new_c)] {
                let a = grads.column(gate * hidden);
                sum(a, Some(c), hidden, "grad_peephole", which * hidden);
            }
        }
    }
}

/// Rows of a tensor, the last axis contiguous.
#[derive(Clone, Copy)]
struct Matrix {
    name: &'static str,
    first: u64,
    row_len: u32,
}

impl Matrix {
    /// The columns from one on.
    fn column(self, column: u32) -> Self {
        Self {
            first: self.first + u64::from(column),
            ..self
        }
    }

    /// The elements that some rows and columns span.
    fn part(self, rows: u32, columns: u32) -> Part {
        let before = u64::from(rows.saturating_sub(1)) * u64::from(self.row_len);
        (
            self.name,
            self.first..self.first + before + u64::from(columns),
        )
    }
}
