//! States that the forward pass keeps every so many steps, and the steps that the backward pass runs again from them.

use std::ops::Range;

use super::carry::{carry_each, carry_runs};
use super::reserve::{Checkpoints, Reserve};
use super::steps::{Again, Planner, pieces};
use crate::gemm::Part;
use crate::kernel::Dispatch;

impl Planner<'_> {
    fn checkpoints(&self) -> Option<(&Reserve, &Checkpoints)> {
        let reserve = self.reserve.as_ref()?;
        Some((reserve, reserve.checkpoints.as_ref()?))
    }

    /// Elements of the cell states of one direction.
    fn cells(&self) -> u64 {
        u64::from(self.shape.batch) * u64::from(self.config.hidden_size)
    }

    /// Where a copy of a layer's h_0 or c_0 is kept.
    pub fn initial(&self, layer: u32, name: &'static str) -> Part {
        let Some((reserve, checkpoints)) = self.checkpoints() else {
            return (name, 0..0);
        };
        let [h, c] = reserve.initial(layer, checkpoints);
        let (start, len) = match name {
            "c_0" => (c, u64::from(self.config.direction.count()) * self.cells()),
            _ => (h, self.output_token()),
        };
        ("reserve", start..start + len)
    }

    /// Keeps the initial state, which the backward pass is not given.
    pub fn keep_initial(&self, layer: u32) -> Vec<Dispatch> {
        if self.checkpoints().is_none() {
            return Vec::new();
        }
        let [to_h, to_c] = ["h_0", "c_0"].map(|name| self.initial(layer, name));
        let from = |name, given: bool, to: &Part| {
            let len = to.1.end - to.1.start;
            let own = u64::from(layer) * len..u64::from(layer + 1) * len;
            given.then_some((name, own))
        };
        let from_h = from("h_0", self.given.h_0, &to_h);
        let from_c = from("c_0", self.given.c_0, &to_c);
        let has_cell = self.config.cell.has_cell_state();
        carry_each([from_h, from_c], [Some(to_h), has_cell.then_some(to_c)])
    }

    /// The steps of a chunk in runs of one dispatch, each within one segment: from a checkpoint to the next.
    pub fn runs(&self, chunk: &Range<u32>) -> Vec<Range<u32>> {
        let each = match self.checkpoints() {
            Some((reserve, _)) => reserve.chunk_steps,
            None => return pieces(chunk.clone(), self.steps_each()).collect(),
        };
        pieces(chunk.start / each * each..chunk.end, each)
            .flat_map(|segment| {
                pieces(
                    segment.start.max(chunk.start)..segment.end,
                    self.steps_each(),
                )
            })
            .collect()
    }

    /// Keeps the state in front of a step if a segment begins there.
    pub fn keep(&self, layer: u32, directions: &Range<u32>, step: u32) -> Vec<Dispatch> {
        let Some((reserve, _)) = self.checkpoints() else {
            return Vec::new();
        };
        if step == 0 || !step.is_multiple_of(reserve.chunk_steps) {
            return Vec::new();
        }
        let cells = self.cells();
        let own = u64::from(directions.start) * cells..u64::from(directions.end) * cells;
        let mut c = self.config.cell.has_cell_state().then(|| {
            let (_, to) = self.kept_state(layer, directions.start, step);
            let to = to + own.start..to + own.end;
            (("scratch", own), ("reserve", to))
        });
        let mut all = Vec::new();
        for direction in directions.clone() {
            let (from_c, to_c) = c.take().unzip();
            let h = (!self.config.output_is_kept(layer)).then(|| {
                let time = self.times(direction, &(step - 1..step));
                let (to, _) = self.kept_state(layer, direction, step);
                (self.layer_output(layer, time), to)
            });
            let (from_h, to_h) = h.unzip();
            if from_h.is_some() && self.config.puts_rows_first(layer) {
                let width = self.output_width();
                let runs = [width, self.shape.seq_len * width];
                all.push(carry_runs([from_h, None], [to_h, None], runs));
                all.extend(carry_each([None, from_c], [None, to_c]));
            } else {
                all.extend(carry_each([from_h, from_c], [to_h, to_c]));
            }
        }
        all
    }

    /// Where the output of the time before a step is kept, and where the cell states of all directions begin.
    fn kept_state(&self, layer: u32, direction: u32, step: u32) -> (Part, u64) {
        let Some((reserve, checkpoints)) = self.checkpoints() else {
            return (("reserve", 0..0), 0);
        };
        let token = self.output_token();
        if self.config.output_is_kept(layer) {
            let time = self.times(direction, &(step - 1..step)).start;
            let start = reserve.layer_output(layer) + u64::from(time) * token;
            let [_, c] = reserve.checkpoint(layer, step, false, checkpoints);
            return (("reserve", start..start + token), c);
        }
        let [h, c] = reserve.checkpoint(layer, step, true, checkpoints);
        let start = h + u64::from(direction) * token;
        (("reserve", start..start + token), c)
    }

    /// Runs the steps of a segment again, one direction after the other, and leaves what the sweep reads of them.
    pub fn run_again(&self, layer: u32, segment: &Range<u32>) -> Vec<Dispatch> {
        let Some(again) = self.again else {
            return Vec::new();
        };
        let count = self.config.direction.count();
        let mut all: Vec<Dispatch> = (0..count)
            .map(|direction| self.projection(layer, direction, segment))
            .collect();
        for direction in 0..count {
            let own = direction..direction + 1;
            if segment.start > 0 {
                all.extend(self.restore(again, layer, direction, segment));
            }
            for steps in pieces(segment.clone(), self.steps_each()) {
                all.push(self.steps(layer, own.clone(), segment, steps));
            }
        }
        all
    }

    /// The state in front of a segment, to where its first step looks for it.
    fn restore(
        &self,
        again: Again,
        layer: u32,
        direction: u32,
        segment: &Range<u32>,
    ) -> Vec<Dispatch> {
        let (from_h, from_c) = self.kept_state(layer, direction, segment.start);
        let before = self.times(direction, &(segment.start - 1..segment.start));
        let to_h = self.output_again(again, &(direction..direction + 1), segment, &before);
        let cells = self.cells();
        let own = u64::from(direction) * cells..u64::from(direction + 1) * cells;
        let of_c = self.config.cell.has_cell_state().then(|| {
            let from = from_c + own.start..from_c + own.end;
            let to = again.rows + own.start..again.rows + own.end;
            (("reserve", from), ("scratch", to))
        });
        let (from_c, to_c) = of_c.unzip();
        carry_each([Some(from_h), from_c], [Some(to_h), to_c])
    }

    /// The elements of some times in what the steps of a segment put out when they run again.
    pub fn output_again(
        &self,
        again: Again,
        directions: &Range<u32>,
        segment: &Range<u32>,
        times: &Range<u32>,
    ) -> Part {
        let first = self.touched(directions, segment).start;
        let [start, end] = [times.start, times.end]
            .map(|time| again.output + u64::from(time - first) * self.output_token());
        ("scratch", start..end)
    }

    /// The most entries that checkpoints add, per layer and direction.
    pub fn dispatches_kept(&self) -> u64 {
        // each costs two copies, and may divide a run of steps
        self.checkpoints().map_or(0, |(reserve, _)| {
            2 + 3 * u64::from(self.shape.seq_len.div_ceil(reserve.chunk_steps))
        })
    }

    /// The most entries of a segment that is run again, per direction.
    pub fn dispatches_again(&self, segment_steps: u32) -> u64 {
        3 + u64::from(segment_steps.div_ceil(self.steps_each()))
    }
}
