//! What a forward pass leaves for the backward pass, and where.

use super::pack::PART;
use super::{Given, RecurrentConfig, RecurrentShape};
use crate::plan::check_elements;
use crate::{Capabilities, Error};

/// What a call leaves for the backward pass, in elements. Of each layer: the chunks, each laid out as scratch is, up
/// to the end of its gates, or in their place the checkpoints; then the output, but for the last layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reserve {
    /// Steps of a chunk, or from one checkpoint to the next.
    pub chunk_steps: u32,
    pub checkpoints: Option<Checkpoints>,
    chunk: u64,
    layer_output: u64,
    layer: u64,
    len: u64,
}

/// Where the states lie from which a layer's steps can be run again: the initial one as h_0 and c_0 are laid out; then
/// those in front of every so many steps, of which h comes first, of each direction as the output has it, then c.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoints {
    initial_c: u64,
    first: u64,
    /// one of the last layer, and of those whose output is not in the reserve, in elements
    with_h: u64,
    /// one of the others, whose h is in their output
    without_h: u64,
}

impl Reserve {
    /// Where a chunk of a layer begins.
    pub fn chunk(&self, layer: u32, start: u32) -> u64 {
        u64::from(layer) * self.layer + u64::from(start / self.chunk_steps) * self.chunk
    }

    /// Where the output of an inner layer begins.
    pub fn layer_output(&self, layer: u32) -> u64 {
        u64::from(layer) * self.layer + self.layer_output
    }

    /// Where the initial h and c of a layer begin.
    pub fn initial(&self, layer: u32, checkpoints: &Checkpoints) -> [u64; 2] {
        let start = u64::from(layer) * self.layer;
        [start, start + checkpoints.initial_c]
    }

    /// Where h and c in front of a step of a layer begin; h has no place if the layer's output is in the reserve.
    pub fn checkpoint(
        &self,
        layer: u32,
        step: u32,
        has_h: bool,
        checkpoints: &Checkpoints,
    ) -> [u64; 2] {
        let each = match has_h {
            true => checkpoints.with_h,
            false => checkpoints.without_h,
        };
        let h_len = if has_h {
            checkpoints.with_h - checkpoints.without_h
        } else {
            0
        };
        let before = u64::from((step / self.chunk_steps).saturating_sub(1));
        let start = u64::from(layer) * self.layer + checkpoints.first + before * each;
        [start, start + h_len]
    }
}

impl RecurrentConfig {
    /// Whether what a layer puts out is in the reserve, step for step.
    pub(super) fn output_is_kept(&self, layer: u32) -> bool {
        layer + 1 < self.num_layers && !self.has_dropout()
    }

    /// Steps of a chunk that is kept as a whole, or from one checkpoint to the next: as many as are asked for, if what
    /// the backward pass needs of so many fits one binding.
    pub(super) fn reserve_steps(&self, capabilities: &Capabilities, shape: RecurrentShape) -> u32 {
        let most = self.chunk_steps(capabilities, shape, true);
        self.checkpoint_every.unwrap_or(u32::MAX).clamp(1, most)
    }

    /// Whether 64 bits can number the bytes of what all layers leave for the backward pass.
    pub(super) fn check_reserve(&self, shape: RecurrentShape) -> Result<(), Error> {
        let tokens = u128::from(shape.seq_len.max(1)) * u128::from(shape.batch);
        let rows = tokens * u128::from(self.direction.count() * self.num_layers);
        let each = u128::from(self.row_len(true)) + u128::from(self.state_size());
        // states and padding are less than as much again
        check_elements(2 * rows * each)
    }

    pub(super) fn reserve(&self, shape: RecurrentShape, chunk_steps: u32) -> Reserve {
        let directions = u64::from(self.direction.count());
        let token = directions * u64::from(shape.batch) * u64::from(self.state_size());
        let output = (u64::from(shape.seq_len) * token).next_multiple_of(PART);
        let before = u64::from(shape.seq_len.saturating_sub(1) / chunk_steps);
        let inner = u64::from(self.num_layers - 1);
        if self.checkpoint_every.is_some() {
            let cells = directions * u64::from(shape.batch) * u64::from(self.hidden_size);
            let c = match self.cell.has_cell_state() {
                true => cells.next_multiple_of(PART),
                false => 0,
            };
            let checkpoints = Checkpoints {
                initial_c: token.next_multiple_of(PART),
                first: token.next_multiple_of(PART) + c,
                // the output of a time has all directions, which are there at different times
                with_h: (directions * token).next_multiple_of(PART) + c,
                without_h: c,
            };
            let of = |each: u64| checkpoints.first + before * each;
            let layer_output = of(match self.has_dropout() {
                true => checkpoints.with_h,
                false => checkpoints.without_h,
            });
            let layer = layer_output + output;
            return Reserve {
                chunk_steps,
                checkpoints: Some(checkpoints),
                chunk: 0,
                layer_output,
                layer,
                len: (inner * layer + of(checkpoints.with_h)).max(PART),
            };
        }
        let region = |steps| self.scratch(shape, steps, true).layer_output;
        let chunk = region(chunk_steps);
        let rest = shape.seq_len - before as u32 * chunk_steps;
        let layer_output = before * chunk + region(rest);
        let layer = layer_output + output;
        Reserve {
            chunk_steps,
            checkpoints: None,
            chunk,
            layer_output,
            layer,
            len: inner * layer + layer_output,
        }
    }

    /// Bytes that a forward pass leaves for the backward pass on a device with `capabilities`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`], [`Error::Operand`].
    pub fn reserve_size(
        &self,
        capabilities: &Capabilities,
        shape: RecurrentShape,
    ) -> Result<u64, Error> {
        self.check(shape, &Given::default())?;
        self.check_reserve(shape)?;
        let steps = self.reserve_steps(capabilities, shape);
        Ok(4 * self.reserve(shape, steps).len)
    }
}
