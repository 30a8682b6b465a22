//! Which tensor a layer of a forward pass reads, and which it writes.

use std::ops::Range;

use super::RecurrentConfig;
use super::steps::Planner;
use crate::ElementType;
use crate::gemm::Part;

/// The vectors of some times of a tensor as the rows of a matrix: at each time one for each row of the batch.
pub struct Tokens {
    /// From the first to the last of them.
    pub elements: Range<u64>,
    /// Elements from one row of the batch to the next.
    pub stride: u32,
    /// Where the batch comes first, the rows of a time, and how far they are from those of the next.
    pub fold: Option<[u32; 2]>,
}

impl RecurrentConfig {
    /// Whether the rows of the batch come first in what a layer reads: in the caller's tensor, not in between.
    pub(super) fn reads_rows_first(&self, layer: u32) -> bool {
        self.batch_first && layer == 0
    }

    /// Whether they do in what it puts out.
    pub(super) fn puts_rows_first(&self, layer: u32) -> bool {
        self.batch_first && layer + 1 == self.num_layers
    }

    /// How what a layer reads is stored.
    pub(super) fn layer_element(&self, layer: u32) -> ElementType {
        match layer {
            0 => self.element,
            _ => ElementType::F32,
        }
    }
}

impl Planner<'_> {
    /// Elements of a layer's output per time and row of the batch.
    pub fn output_width(&self) -> u32 {
        self.config.direction.count() * self.config.state_size()
    }

    /// Elements of a layer's output per time.
    pub fn output_token(&self) -> u64 {
        u64::from(self.shape.batch) * u64::from(self.output_width())
    }

    /// The elements of `times` of what a layer writes, or of what dropout makes of it; in the output, or else in
    /// scratch or, of this layer, in the reserve.
    fn between_layers(&self, layer: u32, in_output: bool, times: Range<u32>) -> Part {
        let (name, first) = match (in_output, &self.reserve) {
            (true, _) => ("output", 0),
            (false, Some(reserve)) => ("reserve", reserve.layer_output(layer)),
            (false, None) => ("scratch", self.scratch.layer_output),
        };
        let token = self.output_token();
        (
            name,
            first + u64::from(times.start) * token..first + u64::from(times.end) * token,
        )
    }

    /// The tensor that a layer writes, and the elements of `times`. Layers alternate between the output and
    /// scratch so that the last one writes the output; with dropout all of them write it, since what the next
    /// one reads is another tensor. What each layer has read is kept for the backward pass.
    pub fn layer_output(&self, layer: u32, times: Range<u32>) -> Part {
        if self.config.puts_rows_first(layer) {
            let tokens = self.tokens(&times, self.output_width(), true);
            return ("output", tokens.elements);
        }
        let last_like = match self.reserve {
            Some(_) => layer + 1 == self.config.num_layers,
            None => (self.config.num_layers - layer) % 2 == 1,
        };
        self.between_layers(layer, last_like || self.config.has_dropout(), times)
    }

    pub fn layer_input(&self, layer: u32, times: Range<u32>) -> Part {
        if layer > 0 && self.config.has_dropout() {
            return self.between_layers(layer - 1, false, times);
        }
        if layer > 0 {
            return self.layer_output(layer - 1, times);
        }
        let rows_first = self.config.reads_rows_first(layer);
        let tokens = self.tokens(&times, self.config.input_size, rows_first);
        ("input", tokens.elements)
    }

    /// How far, in vectors, a time is from the next in a tensor, and a row of the batch.
    pub fn strides(&self, rows_first: bool) -> [u32; 2] {
        match rows_first {
            true => [1, self.shape.seq_len],
            false => [self.shape.batch, 1],
        }
    }

    /// Some times of a tensor `[seq_len, batch, width]` or, with `rows_first`, `[batch, seq_len, width]`.
    pub fn tokens(&self, times: &Range<u32>, width: u32, rows_first: bool) -> Tokens {
        let [time, row] = self.strides(rows_first).map(u64::from);
        let [start, end] = [times.start, times.end].map(|at| u64::from(at) * time);
        let end = match rows_first && !times.is_empty() {
            true => end + u64::from(self.shape.batch.saturating_sub(1)) * row,
            false => end,
        };
        let each = u64::from(width);
        Tokens {
            elements: start * each..end * each,
            stride: (row * each) as u32,
            fold: rows_first.then_some([self.shape.batch, width]),
        }
    }
}
