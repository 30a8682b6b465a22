//! Which tensor a layer of a forward pass reads, and which it writes.

use std::ops::Range;

use super::steps::Planner;
use crate::gemm::Part;

impl Planner<'_> {
    /// Elements of a layer's output per time.
    pub fn output_token(&self) -> u64 {
        let width = self.config.direction.count() * self.config.state_size();
        u64::from(self.shape.batch) * u64::from(width)
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
        let token = u64::from(self.shape.batch) * u64::from(self.config.input_size);
        (
            "input",
            u64::from(times.start) * token..u64::from(times.end) * token,
        )
    }

    /// Whether the rows of the batch come first in what a layer writes: in the caller's tensor, not in between.
    pub fn rows_first(&self, layer: u32) -> bool {
        self.config.batch_first && layer + 1 == self.config.num_layers
    }

    /// The elements of `times` of a tensor `[batch, seq_len, width]`, and all in between.
    pub fn of_all_rows(&self, times: &Range<u32>, width: u64) -> Range<u64> {
        if times.is_empty() {
            return 0..0;
        }
        let before = u64::from(self.shape.batch - 1) * u64::from(self.shape.seq_len);
        u64::from(times.start) * width..(before + u64::from(times.end)) * width
    }
}
