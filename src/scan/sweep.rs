//! How the kernels of a scan are launched, whatever they scan: tensors, or the gates of a cell.

use std::ops::Range;

use crate::gemm::Part;
use crate::kernel::params;
use crate::kernel::{Access, COMMON, Constant, Constants, Dispatch, Kernel, Operand, fold_grid};
use crate::{Capabilities, Error};

const PROBLEM: &str = include_str!("../../shaders/scan_problem.wgsl");
const WALK: &str = include_str!("../../shaders/scan_walk.wgsl");
const REDUCE: &str = include_str!("../../shaders/scan_reduce.wgsl");
const CARRY: &str = include_str!("../../shaders/scan_carry.wgsl");
const APPLY: &str = include_str!("../../shaders/scan_apply.wgsl");
/// What the backward parts have in common.
pub(crate) const BACKWARD_STATES: &str = include_str!("../../shaders/scan_backward_states.wgsl");

/// Steps whose loads are issued together.
const STEPS: u32 = 8;
/// Parts of scratch begin at multiples of this many elements, so that windows into them do not overlap.
pub(crate) const PART: u64 = 64;
/// Bytes of a tensor that a launch on a CPU goes through: it runs a few lanes to the end before the next ones, which
/// then find the rest of the cache lines, and scan_apply what scan_reduce has read, in the cache of a core.
const CACHE: u64 = 128 << 10;
/// More would be a long list of launches that do little each.
const MOST_PIECES: u32 = 4096;
/// Chunks are no shorter, unless that is forced: each costs a load and a store of its totals.
const SHORTEST_CHUNK: u32 = 32;

params! {
    pub(crate) struct Params {
        lanes: u32,
        padded_lanes: u32,
        width: u32,
        seq_len: u32,
        first_step: u32,
        num_steps: u32,
        chunk_len: u32,
        num_chunks: u32,
        flags: u32,
        window_time: u32,
        previous_time: u32,
        scratch_first: u32,
        start_first: u32,
        a_first: u32,
        b_first: u32,
        h_0_first: u32,
        output_first: u32,
        h_n_first: u32,
        grad_output_first: u32,
        grad_a_first: u32,
        grad_b_first: u32,
    }
}

const HAS_INITIAL: u32 = 1;
const FROM_SCRATCH: u32 = 2;
const WRITE_FINAL: u32 = 4;
const TO_SCRATCH: u32 = 8;
const KEEP_H_0: u32 = 16;
const REVERSE: u32 = 32;

/// How the steps of a sequence are spread over a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Steps of the tensors that are bound, or made, at once.
    pub segment: u32,
    /// Steps that one launch goes through.
    piece: u32,
    pub chunk_len: u32,
    pub threads: u32,
}

impl Tiling {
    /// For states of `lanes` elements; the largest tensor has `step` elements per step.
    ///
    /// One invocation per lane would read everything once; where lanes are too few for the device, chunks
    /// are worth the second reading.
    pub fn choose(
        capabilities: &Capabilities,
        seq_len: u32,
        lanes: u64,
        step: u64,
        forced_chunk: Option<u32>,
    ) -> Result<Self, Error> {
        let (enough, wanted) = match capabilities.cpu {
            true => (64, 512),
            false => (1 << 15, 1 << 16),
        };
        let limit = "max_storage_buffer_binding_size";
        let allowed = capabilities.storage_binding_size.min(1 << 31);
        let per_step = step.max(1).saturating_mul(4);
        // the tensor that is looked back into has one step more, and starts up to 252 bytes early
        let steps = allowed.saturating_sub(256) / per_step;
        if steps < 2 {
            let needed = per_step.saturating_mul(2).saturating_add(256);
            return Err(Error::Limit {
                limit,
                needed,
                allowed,
            });
        }
        let segment = (steps - 1).clamp(1, u64::from(seq_len).max(1)) as u32;
        let piece = match capabilities.cpu {
            true => {
                let cached = CACHE / per_step / u64::from(STEPS) * u64::from(STEPS);
                let fewest = u64::from((seq_len / MOST_PIECES).max(STEPS));
                cached.max(fewest).min(segment.into()) as u32
            }
            false => segment,
        };
        let most_chunks = (allowed / 4 / lanes.max(1)).saturating_sub(2) / 2;
        let chunk_len = match forced_chunk {
            Some(len) => len.max(1),
            None if lanes >= enough => piece,
            None => {
                let chunks = (wanted / lanes.max(1)).max(1) as u32;
                piece
                    .div_ceil(chunks)
                    .max(SHORTEST_CHUNK)
                    .next_multiple_of(STEPS)
            }
        };
        let chunk_len = chunk_len.clamp(1, piece);
        let chunks = u64::from(piece.div_ceil(chunk_len));
        if chunks > most_chunks {
            let needed = chunks.saturating_mul(8).saturating_mul(lanes);
            return Err(Error::Limit {
                limit,
                needed,
                allowed,
            });
        }
        let threads = if capabilities.cpu { 32 } else { 64 };
        Ok(Self {
            segment,
            piece,
            chunk_len,
            threads,
        })
    }

    fn chunks(self, steps: u32) -> u32 {
        steps.div_ceil(self.chunk_len).max(1)
    }

    fn constants(self) -> Constants {
        vec![
            ("STEPS", Constant::U32(STEPS)),
            ("WORKGROUP_SIZE", Constant::U32(self.threads)),
        ]
    }

    /// Elements of scratch for `lanes`.
    pub fn scratch_len(self, lanes: u64) -> u64 {
        (2 + 2 * u64::from(self.chunks(self.piece))) * lanes
    }

    /// The most launches of a sequence.
    pub fn num_dispatches(self, seq_len: u32) -> u64 {
        let segments = u64::from(seq_len.div_ceil(self.segment)).max(1);
        3 * (u64::from(seq_len.div_ceil(self.piece)) + segments)
    }

    pub fn describe(self) -> String {
        match self.chunks(self.piece) {
            1 => "scan, one invocation per lane".into(),
            chunks => format!("scan, {chunks} chunks of {} steps per lane", self.chunk_len),
        }
    }
}

/// The parameter that says where a tensor begins in what is bound.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field {
    /// Of `a`, or of the gates.
    A,
    B,
    H0,
    Output,
    /// Of the state that is written at the end.
    HN,
    GradOutput,
    /// Of the gradients of `a`, or of the gates.
    GradA,
    GradB,
}

impl Field {
    fn set(self, params: &mut Params, first: u32) {
        let field = match self {
            Self::A => &mut params.a_first,
            Self::B => &mut params.b_first,
            Self::H0 => &mut params.h_0_first,
            Self::Output => &mut params.output_first,
            Self::HN => &mut params.h_n_first,
            Self::GradOutput => &mut params.grad_output_first,
            Self::GradA => &mut params.grad_a_first,
            Self::GradB => &mut params.grad_b_first,
        };
        *field = first;
    }
}

/// A binding of the kernels, and which of the parameters says where its tensor begins in it.
pub(crate) struct Slot {
    pub operand: Operand,
    first: u32,
    field: Field,
    access: Access,
    /// Whether scan_reduce needs it.
    reduced: bool,
}

impl Slot {
    /// A tensor that is read for the coefficients.
    pub fn read((name, elements): Part, field: Field) -> Self {
        Self {
            reduced: true,
            ..Self::apply((name, elements), Access::Read, field)
        }
    }

    /// A tensor that only scan_apply uses.
    pub fn apply((name, elements): Part, access: Access, field: Field) -> Self {
        let (operand, first) = match elements.is_empty() {
            true => (Operand::Unused, 0),
            false => Operand::elements(name, elements),
        };
        Self {
            operand,
            first,
            field,
            access,
            reduced: access == Access::Read,
        }
    }

    /// A tensor that may be absent.
    pub fn optional(part: Option<Part>, access: Access, field: Field) -> Self {
        Self::apply(part.unwrap_or(("", 0..0)), access, field)
    }
}

/// What a pass over a sequence has beside the tensors of its steps.
pub(crate) struct Sweep<'a> {
    pub tiling: Tiling,
    pub seq_len: u32,
    pub batch: u32,
    pub width: u32,
    /// Whether later times come first.
    pub reverse: bool,
    pub lengths: bool,
    /// Of the part with the bindings, in front of the others.
    pub constants: Constants,
    /// The part with the bindings, and what it needs.
    pub source: &'a [&'static str],
    pub storage: &'static [Access],
    /// Whether the part takes its first state from scan_carry, and h_0 too.
    pub backward: bool,
    /// The state before the first step, and h_0 for a backward pass.
    pub start: Option<Part>,
    pub h_0: Option<Part>,
    /// Whether the state behind the last step is asked for.
    pub finish: bool,
    /// First element of [`Tiling::scratch_len`] in scratch; a multiple of [`PART`].
    pub scratch: u64,
}

/// The steps of a launch: as they follow each other, their times, and the times that are looked back into.
pub(crate) struct Segment {
    pub steps: Range<u32>,
    pub times: Range<u32>,
    pub previous: Range<u32>,
}

impl Sweep<'_> {
    pub fn lanes(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.width)
    }

    /// The segments of a sequence; an empty one has one too, which hands its state on.
    pub fn segments(&self) -> Vec<Segment> {
        self.cut(0..self.seq_len, self.tiling.segment)
    }

    /// What is launched of a segment.
    pub fn pieces(&self, segment: &Segment) -> Vec<Segment> {
        self.cut(segment.steps.clone(), self.tiling.piece)
    }

    fn cut(&self, steps: Range<u32>, each: u32) -> Vec<Segment> {
        let starts = (steps.start..steps.end.max(steps.start + 1)).step_by(each as usize);
        starts
            .map(|start| {
                let end = steps.end.min(start.saturating_add(each));
                let times = match self.reverse {
                    true => self.seq_len - end..self.seq_len - start,
                    false => start..end,
                };
                // a backward pass runs against the order of the forward one
                let previous = match self.reverse {
                    true => times.start.saturating_sub(1)..times.end,
                    false => times.start..self.seq_len.min(times.end + 1),
                };
                Segment {
                    steps: start..end,
                    times,
                    previous,
                }
            })
            .collect()
    }

    /// The launches for one piece. `slots` are all bindings but lengths and scratch, which stand in front of
    /// the first that is written.
    pub fn launch(&self, segment: &Segment, slots: Vec<Slot>, out: &mut Vec<Dispatch>) {
        let num_steps = segment.steps.end - segment.steps.start;
        let chunks = self.tiling.chunks(num_steps);
        let carried = self.backward || chunks > 1;
        let is_first = segment.steps.start == 0;
        let is_last = segment.steps.end == self.seq_len;
        let flags = [
            (is_first && self.start.is_some(), HAS_INITIAL),
            (!is_first, FROM_SCRATCH),
            (is_last && self.finish, WRITE_FINAL),
            (!is_last, TO_SCRATCH),
            (self.backward && self.h_0.is_some(), KEEP_H_0),
            (self.reverse, REVERSE),
        ];
        let lanes = self.lanes();
        let padded = match lanes {
            ..64 => lanes.next_power_of_two(),
            _ => lanes.next_multiple_of(self.tiling.threads.into()),
        };
        let (scratch, scratch_first) = Operand::elements(
            "scratch",
            self.scratch..self.scratch + self.tiling.scratch_len(lanes),
        );
        let lengths = match self.lengths {
            true => Operand::whole("lengths", 4 * u64::from(self.batch)),
            false => Operand::Unused,
        };
        let state = |part: &Option<Part>| match part {
            Some((name, elements)) => Operand::elements(name, elements.clone()),
            None => (Operand::Unused, 0),
        };
        let (start, start_first) = state(&self.start);
        let (h_0, h_0_first) = state(&self.h_0);
        let params = Params {
            lanes: lanes as u32,
            padded_lanes: padded as u32,
            width: self.width,
            seq_len: self.seq_len,
            first_step: segment.steps.start,
            num_steps,
            chunk_len: self.tiling.chunk_len,
            num_chunks: chunks,
            flags: flags
                .iter()
                .filter_map(|(set, flag)| set.then_some(flag))
                .sum(),
            window_time: segment.times.start,
            previous_time: segment.previous.start,
            scratch_first,
            start_first,
            h_0_first,
            ..Default::default()
        };
        let mut with_tensors = params;
        for slot in &slots {
            slot.field.set(&mut with_tensors, slot.first);
        }
        let behind = slots.iter().position(|slot| slot.access == Access::Write);
        let behind = behind.unwrap_or(slots.len());
        let operands = |reduce: bool| -> Vec<Operand> {
            let own = |slot: &Slot| match reduce && !slot.reduced {
                true => Operand::Unused,
                false => slot.operand.clone(),
            };
            let (read, written) = slots.split_at(behind);
            let between = [lengths.clone(), scratch.clone()];
            read.iter()
                .map(own)
                .chain(between)
                .chain(written.iter().map(own))
                .collect()
        };
        let launch =
            |name, parts, storage, constants, params: &Params, operands, threads: u64| Dispatch {
                kernel: Kernel {
                    name,
                    enables: &[],
                    parts,
                    params: Params::FIELDS,
                    storage,
                    stepped: false,
                },
                constants,
                params: bytemuck::bytes_of(params).to_vec(),
                operands,
                grid: fold_grid(threads.div_ceil(self.tiling.threads.into())),
                steps: 1,
            };
        let parts = |last| {
            [&[COMMON, PROBLEM], self.source, &[WALK, last]]
                .concat()
                .into()
        };
        let all = padded * u64::from(chunks);
        if chunks > 1 {
            let operands = operands(true);
            let threads = padded * u64::from(chunks - 1);
            let constants = self.constants(&[("LENGTHS", Constant::Bool(self.lengths))]);
            let dispatch = launch(
                "scan_reduce",
                parts(REDUCE),
                self.storage,
                constants,
                &with_tensors,
                operands,
                threads,
            );
            out.push(dispatch);
        }
        if carried {
            let kept = if self.backward { h_0 } else { Operand::Unused };
            let operands = vec![start, kept, Operand::Unused, scratch.clone()];
            let storage = &[Access::Read, Access::Read, Access::Read, Access::Write];
            let parts = vec![COMMON, PROBLEM, CARRY].into();
            let mut constants = self.tiling.constants();
            constants.push(("LENGTHS", Constant::Bool(false)));
            out.push(launch(
                "scan_carry",
                parts,
                storage,
                constants,
                &params,
                operands,
                lanes,
            ));
        }
        let constants = self.constants(&[
            ("LENGTHS", Constant::Bool(self.lengths)),
            ("CARRIED", Constant::Bool(carried)),
        ]);
        out.push(launch(
            "scan_apply",
            parts(APPLY),
            self.storage,
            constants,
            &with_tensors,
            operands(false),
            all,
        ));
    }

    fn constants(&self, own: &[(&'static str, Constant)]) -> Constants {
        [&self.constants, own, &self.tiling.constants()].concat()
    }
}
