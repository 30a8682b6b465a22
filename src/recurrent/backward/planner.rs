//! The dispatches of a backward pass: per layer the sweep in pieces, and after each piece the products and sums
//! over its tokens.

use std::ops::Range;

use super::RecurrentBackwardGiven;
use super::scratch::BackwardScratch;
use super::sums::NormParams;
use super::tile::Tile;
use crate::gemm::Part;
use crate::kernel::{Dispatch, Operand};
use crate::recurrent::carry::carry_each;
use crate::recurrent::dropout::dropout;
use crate::recurrent::reserve::Reserve;
use crate::recurrent::steps::{self, pieces};
use crate::recurrent::{Direction, RecurrentConfig, RecurrentShape};
use crate::{Capabilities, Variant};

/// What the dispatches of a call depend on.
pub(super) struct Planner<'a> {
    pub config: &'a RecurrentConfig,
    pub capabilities: &'a Capabilities,
    pub shape: RecurrentShape,
    pub given: RecurrentBackwardGiven,
    pub tile: Tile,
    pub variant: Variant,
    pub scratch: BackwardScratch,
    pub reserve: Reserve,
    /// of the forward pass, which runs segments of steps again where there are checkpoints
    pub forward: steps::Planner<'a>,
}

/// A dispatch, and which weights' gradients it writes: `layer * num_directions + direction`.
pub(super) type Numbered = (u32, Dispatch);

/// Some steps of one layer, all of one chunk.
pub(super) struct Piece {
    pub layer: u32,
    pub chunk: Range<u32>,
    pub steps: Range<u32>,
    /// the first one that is computed, which is the last one in time
    pub first: bool,
    /// whether the layer has no other
    pub only: bool,
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
            // the pieces of a chunk come from its end to its start
            if self.reserve.checkpoints.is_some() && piece.steps.end == piece.chunk.end {
                let again = self.forward.run_again(layer, &piece.chunk);
                out.extend(again.into_iter().map(|one| (at, one)));
            }
            for range in self.joint_directions(layer) {
                self.sweep(&piece, range, out);
            }
            for direction in 0..directions {
                self.products(&piece, direction, out);
            }
        }
        self.copy(at, [Some(carry_h), carry_c], [first_h, first_c], out);
        if layer > 0 && self.config.has_dropout() {
            let token = self.forward.output_token();
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
    pub(super) fn times_each(&self, width: u32) -> u32 {
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
        let again = match self.reserve.checkpoints {
            Some(_) => chunks * self.forward.dispatches_again(chunk_steps),
            None => 0,
        };
        layers * (8 + 2 * whole + pieces * (sweeps + 14) + again)
    }

    /// Nothing where there is no destination.
    pub(super) fn copy(
        &self,
        at: u32,
        [from_h, from_c]: [Option<Part>; 2],
        [to_h, to_c]: [Option<Part>; 2],
        out: &mut Vec<Numbered>,
    ) {
        let all = carry_each([from_h, from_c], [to_h, to_c]);
        out.extend(all.into_iter().map(|one| (at, one)));
    }

    /// Elements of all rows' hidden states of a layer, and of their cell states.
    pub(super) fn state_lens(&self) -> [u64; 2] {
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

    pub(super) fn reverse(&self) -> u32 {
        (self.config.direction == Direction::Reverse).into()
    }

    /// The times of some steps of a direction.
    pub(super) fn times(&self, direction: u32, steps: &Range<u32>) -> Range<u32> {
        let seq_len = self.shape.seq_len;
        if (direction + self.reverse()) % 2 == 1 {
            seq_len - steps.end..seq_len - steps.start
        } else {
            steps.clone()
        }
    }

    /// The gradient of what a layer put out, at some times; an empty name if there is none.
    pub(super) fn output_gradient(&self, layer: u32, times: &Range<u32>) -> Part {
        let width = self.forward.output_width();
        let rows_first = self.config.puts_rows_first(layer);
        let own = self.forward.tokens(times, width, rows_first).elements;
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
    pub(super) fn input_gradient(&self, layer: u32, times: Range<u32>) -> (Part, u32) {
        let width = self.config.layer_input_size(layer);
        let rows_first = self.config.reads_rows_first(layer);
        let own = self.forward.tokens(&times, width, rows_first).elements;
        if layer > 0 {
            let start = self.scratch.read(self.config, layer - 1);
            return (("scratch", start + own.start..start + own.end), width);
        }
        match self.given.grad_input {
            true => (("grad_input", own), width),
            false => (("", own), width),
        }
    }
}
