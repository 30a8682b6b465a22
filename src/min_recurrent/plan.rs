//! What a forward pass launches: per layer and segment of steps a product, then the scan of its gates.

use std::ops::Range;

use super::{Candidate, MinCell, MinRecurrentConfig, MinRecurrentGiven, MinRecurrentShape};
use crate::gemm::{GemmConfig, GemmShape, Part, Product};
use crate::kernel::{Access, Constant, Constants, Dispatch};
use crate::plan::{check_dispatches, check_elements};
use crate::scan::{Field, PART, Segment, Slot, Sweep, Tiling};
use crate::{Capabilities, Error, Plan, Variant};

const PROBLEM: &str = include_str!("../../shaders/min_recurrent_problem.wgsl");
const CELL_GRU: &str = include_str!("../../shaders/min_recurrent_cell_gru.wgsl");
const CELL_LSTM: &str = include_str!("../../shaders/min_recurrent_cell_lstm.wgsl");
const GATES: &str = include_str!("../../shaders/min_recurrent_gates.wgsl");

const STORAGE: &[Access] = &[
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Write,
    Access::Write,
    Access::Write,
];

/// The most bytes of gates that are computed ahead of the scan that uses them.
const SEGMENT_SIZE: u64 = 64 << 20;

/// What both passes of a call depend on.
pub(super) struct Planner<'a> {
    pub config: &'a MinRecurrentConfig,
    pub capabilities: &'a Capabilities,
    pub shape: MinRecurrentShape,
    pub variant: Variant,
    pub tiling: Tiling,
}

impl MinRecurrentConfig {
    /// The variants that a device can run, best first.
    pub fn variants(&self, capabilities: &Capabilities) -> impl Iterator<Item = Variant> + use<> {
        GemmConfig::default().variants(capabilities)
    }

    /// How a call runs on a device with `capabilities`; pure.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Feature`], [`Error::Limit`].
    pub fn plan(
        &self,
        capabilities: &Capabilities,
        shape: MinRecurrentShape,
        given: MinRecurrentGiven,
    ) -> Result<Plan, Error> {
        let planner = self.planner(capabilities, shape)?;
        let mut dispatches = Vec::new();
        let scratch = planner.scratch(given.reserve);
        if shape.batch > 0 {
            for layer in 0..self.num_layers {
                planner.layer(layer, given, &scratch, &mut dispatches);
            }
        }
        let products: f64 = (0..self.num_layers)
            .map(|layer| planner.product_flops(layer))
            .sum();
        let tokens = f64::from(shape.batch) * f64::from(shape.seq_len);
        let width = f64::from(self.input_size) + f64::from(self.hidden_size);
        let states = tokens * f64::from(self.hidden_size) * f64::from(self.num_layers);
        Ok(Plan {
            variant: planner.variant,
            describe: planner.tiling.describe(),
            dispatches,
            scratch_size: 4 * scratch.len,
            // a multiply-add per step beside the products
            flops: products + 2.0 * states,
            bytes: 0.5 * self.packed_size() as f64 + 4.0 * tokens * width,
        })
    }

    /// Bytes that a forward pass leaves for the backward one.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`].
    pub fn reserve_size(&self, shape: MinRecurrentShape) -> Result<u64, Error> {
        self.check(shape)?;
        Ok(4 * self.reserved(shape, self.num_layers).gates.start.max(PART))
    }

    pub(super) fn planner<'a>(
        &'a self,
        capabilities: &'a Capabilities,
        shape: MinRecurrentShape,
    ) -> Result<Planner<'a>, Error> {
        self.check(shape)?;
        let variants = self.variants(capabilities);
        let variant = Variant::choose(self.variant, variants, "a minimal recurrence")?;
        let batch = u64::from(shape.batch);
        let widest = self.gate_rows().max(self.input_size.into());
        let tiling = Tiling::choose(
            &Capabilities {
                storage_binding_size: segment_room(capabilities, 4 * batch * widest),
                ..*capabilities
            },
            shape.seq_len,
            batch * u64::from(self.hidden_size),
            batch * widest,
            self.chunk_len,
        )?;
        let allowed = capabilities.storage_binding_size.min(1 << 31);
        let needed = 4 * self.largest_packed_layer();
        if needed > allowed {
            let limit = "max_storage_buffer_binding_size";
            return Err(Error::Limit {
                limit,
                needed,
                allowed,
            });
        }
        let segments = u64::from(shape.seq_len.div_ceil(tiling.segment)).max(1);
        let each = 4 * segments + tiling.num_dispatches(shape.seq_len);
        check_dispatches(each.saturating_mul(self.num_layers.into()))?;
        Ok(Planner {
            config: self,
            capabilities,
            shape,
            variant,
            tiling,
        })
    }

    fn check(&self, shape: MinRecurrentShape) -> Result<(), Error> {
        let sizes = [
            ("input_size", self.input_size, 1 << 20),
            ("hidden_size", self.hidden_size, 1 << 14),
            ("num_layers", self.num_layers, 1 << 10),
        ];
        for (name, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(Error::shape(name, size, format!("1 to {most}")));
            }
        }
        for (name, size) in [("seq_len", shape.seq_len), ("batch", shape.batch)] {
            if size >= 1 << 30 {
                return Err(Error::shape(name, size, "less than 2^30"));
            }
        }
        if self.chunk_len == Some(0) {
            return Err(Error::shape("chunk_len", 0, "at least 1"));
        }
        let widest = self.gate_rows().max(self.input_size.into());
        let tokens = u128::from(shape.seq_len) * u128::from(shape.batch);
        check_elements(2 * tokens * u128::from(widest) * u128::from(self.num_layers))
    }

    /// Where a layer's part of the reserve lies.
    pub(super) fn reserved(&self, shape: MinRecurrentShape, layer: u32) -> Reserved {
        let tokens = u64::from(shape.seq_len) * u64::from(shape.batch);
        let gates_len = tokens * self.gate_rows();
        let output_len = tokens * u64::from(self.hidden_size);
        let each = gates_len.next_multiple_of(PART) + output_len.next_multiple_of(PART);
        let gates = u64::from(layer) * each;
        let output = gates + gates_len.next_multiple_of(PART);
        Reserved {
            gates: gates..gates + gates_len,
            output: output..output + output_len,
        }
    }

    pub(super) fn constants(&self) -> Constants {
        vec![
            ("NUM_GATES", Constant::U32(self.cell.num_gates())),
            (
                "POSITIVE",
                Constant::Bool(self.candidate == Candidate::Positive),
            ),
        ]
    }

    /// The parts that say what the cell is.
    pub(super) fn cell_parts(&self) -> [&'static str; 2] {
        let cell = match self.cell {
            MinCell::Gru => CELL_GRU,
            MinCell::Lstm => CELL_LSTM,
        };
        [PROBLEM, cell]
    }
}

/// A layer's gates, and its output unless it is the last layer: elements.
pub(super) struct Reserved {
    pub gates: Range<u64>,
    pub output: Range<u64>,
}

/// Bytes that a segment of a tensor may have, each of whose steps has `step`.
fn segment_room(capabilities: &Capabilities, step: u64) -> u64 {
    let device = capabilities.storage_binding_size;
    match step.saturating_mul(2).saturating_add(256) <= SEGMENT_SIZE {
        true => device.min(SEGMENT_SIZE),
        false => device,
    }
}

/// Where the parts of a forward pass's scratch lie, in elements; the scan's comes first.
pub(super) struct Scratch {
    gates: u64,
    layer_output: u64,
    len: u64,
}

impl Planner<'_> {
    pub fn lanes(&self) -> u64 {
        u64::from(self.shape.batch) * u64::from(self.config.hidden_size)
    }

    pub fn product_flops(&self, layer: u32) -> f64 {
        let tokens = f64::from(self.shape.batch) * f64::from(self.shape.seq_len);
        let input = f64::from(self.config.layer_input_size(layer));
        2.0 * tokens * self.config.gate_rows() as f64 * input
    }

    fn scratch(&self, reserve: bool) -> Scratch {
        let steps = u64::from(self.tiling.segment.min(self.shape.seq_len));
        let step = u64::from(self.shape.batch) * self.config.gate_rows();
        let gates = self.tiling.scratch_len(self.lanes()).next_multiple_of(PART);
        let own = |len: u64| {
            if reserve {
                0
            } else {
                len.next_multiple_of(PART)
            }
        };
        let layer_output = gates + own(steps * step);
        let inner = match self.config.num_layers {
            1 => 0,
            _ => own(u64::from(self.shape.seq_len) * self.lanes()),
        };
        Scratch {
            gates,
            layer_output,
            len: (layer_output + inner).max(PART),
        }
    }

    /// The tensor that a layer writes. Without a reserve, layers alternate between the output and scratch so that the
    /// last one writes the output.
    fn layer_output(&self, layer: u32, reserve: bool, scratch: &Scratch) -> (&'static str, u64) {
        let behind = self.config.num_layers - 1 - layer;
        match (behind, reserve) {
            (0, _) => ("output", 0),
            (_, true) => self.reserved_output(layer),
            (_, false) if behind.is_multiple_of(2) => ("output", 0),
            (_, false) => ("scratch", scratch.layer_output),
        }
    }

    /// The output of an inner layer, for a backward pass.
    pub fn reserved_output(&self, layer: u32) -> (&'static str, u64) {
        let output = self.config.reserved(self.shape, layer).output;
        ("reserve", output.start)
    }

    /// Times of a tensor `[seq_len, batch, width]` that begins at an element.
    pub fn times(
        &self,
        (name, first): (&'static str, u64),
        width: u64,
        times: &Range<u32>,
    ) -> Part {
        let step = u64::from(self.shape.batch) * width;
        let at = |time: u32| first + u64::from(time) * step;
        (name, at(times.start)..at(times.end))
    }

    /// A state `[num_layers, batch, hidden_size]` of a layer.
    pub fn state(&self, name: &'static str, layer: u32, given: bool) -> Option<Part> {
        let lanes = self.lanes();
        let own = u64::from(layer) * lanes..u64::from(layer + 1) * lanes;
        given.then_some((name, own))
    }

    pub fn product(&self, product: Product, out: &mut Vec<Dispatch>) {
        if product.shape.m > 0 && product.shape.n > 0 {
            out.push(product.dispatch(self.capabilities));
        }
    }

    fn layer(
        &self,
        layer: u32,
        given: MinRecurrentGiven,
        scratch: &Scratch,
        out: &mut Vec<Dispatch>,
    ) {
        let config = self.config;
        let [problem, cell] = config.cell_parts();
        let h_0 = self.state("h_0", layer, given.h_0);
        let h_n = self.state("h_n", layer, given.h_n);
        let sweep = Sweep {
            tiling: self.tiling,
            seq_len: self.shape.seq_len,
            batch: self.shape.batch,
            width: config.hidden_size,
            reverse: config.reverse,
            lengths: given.lengths,
            constants: config.constants(),
            source: &[problem, cell, GATES],
            storage: STORAGE,
            backward: false,
            start: h_0.clone(),
            h_0: None,
            finish: given.h_n,
            scratch: 0,
        };
        let hidden = config.hidden_size.into();
        let output = self.layer_output(layer, given.reserve, scratch);
        for segment in sweep.segments() {
            let input = match layer {
                0 => ("input", 0),
                _ => self.layer_output(layer - 1, given.reserve, scratch),
            };
            // in the scratch there are only the gates of the segment
            let (gates, start) = match given.reserve {
                true => (config.reserved(self.shape, layer).gates.start, 0),
                false => (scratch.gates, segment.times.start),
            };
            let name = if given.reserve { "reserve" } else { "scratch" };
            let gates = |times: &Range<u32>| {
                let times = times.start - start..times.end - start;
                self.times((name, gates), config.gate_rows(), &times)
            };
            self.projection(layer, input, &segment, gates(&segment.times), out);
            for piece in sweep.pieces(&segment) {
                let slots = vec![
                    Slot::read(gates(&piece.times), Field::A),
                    Slot::optional(h_0.clone(), Access::Read, Field::H0),
                    Slot::apply(
                        self.times(output, hidden, &piece.times),
                        Access::Write,
                        Field::Output,
                    ),
                    Slot::optional(h_n.clone(), Access::Write, Field::HN),
                ];
                sweep.launch(&piece, slots, out);
            }
        }
    }

    /// The gates of all steps of a segment: one product.
    fn projection(
        &self,
        layer: u32,
        input: (&'static str, u64),
        segment: &Segment,
        gates: Part,
        out: &mut Vec<Dispatch>,
    ) {
        let config = self.config;
        let input_size = config.layer_input_size(layer);
        let packed = config.packed(layer);
        let gemm = GemmConfig {
            bias: true,
            ..Default::default()
        };
        let rows = segment.times.len() as u32 * self.shape.batch;
        let product = Product {
            fold: None,
            config: gemm,
            shape: GemmShape::new(&gemm, rows, config.gate_rows() as u32, input_size),
            a: self.times(input, input_size.into(), &segment.times),
            b: ("weights", packed.transposed),
            bias: Some(("weights", packed.bias)),
            output: gates,
        };
        self.product(product, out);
    }
}
