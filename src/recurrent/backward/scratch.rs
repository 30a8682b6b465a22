//! Where the parts of a backward pass's scratch buffer lie.

use super::RecurrentBackwardGiven;
use crate::Capabilities;
use crate::recurrent::steps::Again;
use crate::recurrent::{RecurrentConfig, RecurrentShape};

/// Where the parts of the scratch buffer lie, in elements; dh comes first.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackwardScratch {
    pub piece_steps: u32,
    pub carry_c: u64,
    pub grads: u64,
    /// end of the rows of d_gates, start of the input without what lies past the end of each sequence
    pub masked: u64,
    /// where the steps from one checkpoint to the next are run again
    pub again: Option<Again>,
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
        let rows = masked + masked_len.next_multiple_of(PART);
        let (again, inner) = match config.checkpoint_every {
            Some(_) => {
                let output = rows + config.scratch(shape, chunk_steps, true).layer_output;
                // those of the steps, and the one before
                let times = u64::from(chunk_steps) + 1;
                let end = output + (times * batch * width).next_multiple_of(PART);
                (Some(Again { rows, output }), end)
            }
            None => (None, rows),
        };
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
            again,
            inner,
            inner_len,
            len: inner + u64::from(places) * inner_len,
        }
    }

    /// Where the gradient of what the layer behind an inner layer reads begins.
    pub(super) fn read(&self, config: &RecurrentConfig, layer: u32) -> u64 {
        let place = if config.has_dropout() { 0 } else { layer % 2 };
        self.inner + u64::from(place) * self.inner_len
    }

    /// Where the gradient of what an inner layer puts out begins.
    pub(super) fn put_out(&self, config: &RecurrentConfig, layer: u32) -> u64 {
        let place = if config.has_dropout() { 1 } else { layer % 2 };
        self.inner + u64::from(place) * self.inner_len
    }
}
