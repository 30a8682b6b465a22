//! Gradients: the scan in the opposite order of time makes those of the gates, three products per layer the
//! rest.

use std::borrow::Cow;
use std::ops::Range;

use super::plan::Planner;
use super::{MinRecurrent, MinRecurrentConfig, MinRecurrentShape};
use crate::gemm::{GemmConfig, GemmShape, Part, Product};
use crate::kernel::{Access, Constant, Dispatch, Kernel, Operand, fold_grid, params};
use crate::scan::{BACKWARD_STATES, Field, PART, Segment, Slot, Sweep, given_slices};
use crate::{Bound, Capabilities, Error, Plan};

const GATES: &str = include_str!("../../shaders/min_recurrent_backward_gates.wgsl");
const BIAS: &str = include_str!("../../shaders/min_recurrent_backward_bias.wgsl");

const STORAGE: &[Access] = &[
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Write,
    Access::Write,
    Access::Write,
];

/// Partial sums of a bias's gradient, at most.
const BLOCKS: u64 = 256;
const SHORTEST_BLOCK: u64 = 32;

params! {
    struct BiasParams {
        rows: u32,
        columns: u32,
        block: u32,
        num_blocks: u32,
        input_first: u32,
        output_first: u32,
    }
}

/// The tensors of a backward pass, f32 but for `lengths`. Those of the forward pass are unchanged since.
#[derive(Debug, Clone, Copy)]
pub struct MinRecurrentBackwardBuffers<'a> {
    /// As in the forward pass.
    pub input: wgpu::BufferSlice<'a>,
    /// As in the forward pass.
    pub weights: wgpu::BufferSlice<'a>,
    /// As in the forward pass.
    pub h_0: Option<wgpu::BufferSlice<'a>>,
    /// As in the forward pass.
    pub lengths: Option<wgpu::BufferSlice<'a>>,
    /// What the forward pass wrote.
    pub output: wgpu::BufferSlice<'a>,
    /// What the forward pass wrote.
    pub reserve: wgpu::BufferSlice<'a>,
    /// `[seq_len, batch, hidden_size]`, read; zeros if absent.
    pub grad_output: Option<wgpu::BufferSlice<'a>>,
    /// `[num_layers, batch, hidden_size]`, read; zeros if absent.
    pub grad_h_n: Option<wgpu::BufferSlice<'a>>,
    /// `[seq_len, batch, input_size]`, written if given.
    pub grad_input: Option<wgpu::BufferSlice<'a>>,
    /// [`MinRecurrentConfig::gradient_size`] bytes, written; where what lies in it says
    /// [`MinRecurrentConfig::gradient_elements`].
    pub grad_weights: wgpu::BufferSlice<'a>,
    /// `[num_layers, batch, hidden_size]`, written if given.
    pub grad_h_0: Option<wgpu::BufferSlice<'a>>,
    /// [`MinRecurrent::backward_scratch_size`] bytes of any content.
    pub scratch: wgpu::BufferSlice<'a>,
}

impl<'a> MinRecurrentBackwardBuffers<'a> {
    /// The six that every call needs.
    pub fn new(
        input: wgpu::BufferSlice<'a>,
        weights: wgpu::BufferSlice<'a>,
        output: wgpu::BufferSlice<'a>,
        reserve: wgpu::BufferSlice<'a>,
        grad_weights: wgpu::BufferSlice<'a>,
        scratch: wgpu::BufferSlice<'a>,
    ) -> Self {
        let (h_0, lengths, grad_output, grad_h_n, grad_input, grad_h_0) = Default::default();
        Self {
            input,
            weights,
            h_0,
            lengths,
            output,
            reserve,
            grad_output,
            grad_h_n,
            grad_input,
            grad_weights,
            grad_h_0,
            scratch,
        }
    }

    fn given(&self) -> MinRecurrentBackwardGiven {
        MinRecurrentBackwardGiven {
            h_0: self.h_0.is_some(),
            lengths: self.lengths.is_some(),
            grad_output: self.grad_output.is_some(),
            grad_h_n: self.grad_h_n.is_some(),
            grad_input: self.grad_input.is_some(),
            grad_h_0: self.grad_h_0.is_some(),
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        given_slices([
            ("input", Some(self.input)),
            ("weights", Some(self.weights)),
            ("h_0", self.h_0),
            ("lengths", self.lengths),
            ("output", Some(self.output)),
            ("reserve", Some(self.reserve)),
            ("grad_output", self.grad_output),
            ("grad_h_n", self.grad_h_n),
            ("grad_input", self.grad_input),
            ("grad_weights", Some(self.grad_weights)),
            ("grad_h_0", self.grad_h_0),
            ("scratch", Some(self.scratch)),
        ])
    }
}

/// Which of the optional tensors a backward pass has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MinRecurrentBackwardGiven {
    /// The forward pass had an initial state.
    pub h_0: bool,
    /// Lengths.
    pub lengths: bool,
    /// Gradients of all outputs.
    pub grad_output: bool,
    /// Gradients of the last states.
    pub grad_h_n: bool,
    /// The gradient of the input is asked for.
    pub grad_input: bool,
    /// The gradient of the initial states is asked for.
    pub grad_h_0: bool,
}

/// Where the parts of the scratch lie, in elements; the scan's comes first.
struct Scratch {
    grad_gates: u64,
    sums: u64,
    /// Gradients of the outputs of inner layers; a layer reads one and writes the other.
    inner: [u64; 2],
    len: u64,
}

impl MinRecurrentConfig {
    /// How a backward pass runs on a device with `capabilities`; pure.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_backward(
        &self,
        capabilities: &Capabilities,
        shape: MinRecurrentShape,
        given: MinRecurrentBackwardGiven,
    ) -> Result<Plan, Error> {
        let planner = self.planner(capabilities, shape)?;
        let scratch = planner.backward_scratch();
        let mut dispatches = Vec::new();
        for layer in (0..self.num_layers).rev() {
            planner.layer_backward(layer, given, &scratch, &mut dispatches);
        }
        let without_input = if given.grad_input {
            0.0
        } else {
            planner.product_flops(0)
        };
        let products: f64 = (0..self.num_layers)
            .map(|layer| planner.product_flops(layer))
            .sum();
        let tokens = f64::from(shape.batch) * f64::from(shape.seq_len);
        let width = f64::from(self.input_size) + f64::from(self.hidden_size);
        let states = tokens * f64::from(self.hidden_size) * f64::from(self.num_layers);
        Ok(Plan {
            variant: planner.variant,
            describe: format!("backward: {}", planner.tiling.describe()),
            dispatches,
            scratch_size: 4 * scratch.len,
            flops: 2.0 * products - without_input + 4.0 * states,
            bytes: self.gradient_size() as f64
                + 0.5 * self.packed_size() as f64
                + self.reserve_size(shape)? as f64
                + 8.0 * tokens * width,
        })
    }
}

impl Planner<'_> {
    fn backward_scratch(&self) -> Scratch {
        let config = self.config;
        let rows = config.gate_rows();
        let steps = u64::from(self.tiling.segment.min(self.shape.seq_len));
        let gates_len = steps * u64::from(self.shape.batch) * rows;
        let inner_len = u64::from(self.shape.seq_len) * self.lanes();
        let grad_gates = self.tiling.scratch_len(self.lanes()).next_multiple_of(PART);
        let sums = grad_gates + gates_len.next_multiple_of(PART);
        let first = sums + (BLOCKS * rows).next_multiple_of(PART);
        let inner = |layers: u32| match config.num_layers > layers {
            true => inner_len.next_multiple_of(PART),
            false => 0,
        };
        let second = first + inner(1);
        Scratch {
            grad_gates,
            sums,
            inner: [first, second],
            len: second + inner(2),
        }
    }

    fn layer_backward(
        &self,
        layer: u32,
        given: MinRecurrentBackwardGiven,
        scratch: &Scratch,
        out: &mut Vec<Dispatch>,
    ) {
        let config = self.config;
        let [problem, cell] = config.cell_parts();
        let is_last = layer + 1 == config.num_layers;
        let has_grad = !is_last || given.grad_output;
        let mut constants = config.constants();
        constants.push(("GRAD_OUTPUT", Constant::Bool(has_grad)));
        let sweep = Sweep {
            tiling: self.tiling,
            seq_len: self.shape.seq_len,
            batch: self.shape.batch,
            width: config.hidden_size,
            reverse: !config.reverse,
            lengths: given.lengths,
            constants,
            source: &[BACKWARD_STATES, problem, cell, GATES],
            storage: STORAGE,
            backward: true,
            start: self.state("grad_h_n", layer, given.grad_h_n),
            h_0: self.state("h_0", layer, given.h_0),
            finish: given.grad_h_0,
            scratch: 0,
        };
        let hidden = u64::from(config.hidden_size);
        let rows = config.gate_rows();
        let (output, grad_output) = match is_last {
            true => (("output", 0), ("grad_output", 0)),
            false => {
                let inner = scratch.inner[layer as usize % 2];
                (self.reserved_output(layer), ("scratch", inner))
            }
        };
        for segment in sweep.segments() {
            let start = segment.times.start;
            let grad_gates = |times: &Range<u32>| {
                let times = times.start - start..times.end - start;
                self.times(("scratch", scratch.grad_gates), rows, &times)
            };
            let gates = ("reserve", config.reserved(self.shape, layer).gates.start);
            let pieces = sweep.pieces(&segment);
            for piece in pieces.iter().filter(|_| self.lanes() > 0) {
                let grad = self.times(grad_output, hidden, &piece.times);
                let grad_h_0 = self.state("grad_h_0", layer, given.grad_h_0);
                let (read, write) = (Access::Read, Access::Write);
                let slots = vec![
                    Slot::read(self.times(gates, rows, &piece.times), Field::A),
                    Slot::apply(
                        self.times(output, hidden, &piece.previous),
                        read,
                        Field::Output,
                    ),
                    Slot::optional(has_grad.then_some(grad), read, Field::GradOutput),
                    Slot::apply(grad_gates(&piece.times), write, Field::GradA),
                    Slot::optional(grad_h_0, write, Field::HN),
                ];
                sweep.launch(piece, slots, out);
            }
            let grad_gates = grad_gates(&segment.times);
            self.weight_gradients(layer, &segment, &grad_gates, scratch, out);
            if layer > 0 || given.grad_input {
                self.input_gradient(layer, &segment, &grad_gates, scratch, out);
            }
        }
    }

    /// Of the weight a product, of the bias sums: both of all steps so far.
    fn weight_gradients(
        &self,
        layer: u32,
        segment: &Segment,
        grad_gates: &Part,
        scratch: &Scratch,
        out: &mut Vec<Dispatch>,
    ) {
        let config = self.config;
        let input_size = config.layer_input_size(layer);
        let input = match layer {
            0 => ("input", 0),
            _ => self.reserved_output(layer - 1),
        };
        let [weight, bias] = config.gradient_elements(layer);
        let accumulate = segment.steps.start > 0;
        let tokens = segment.times.len() as u32 * self.shape.batch;
        let rows = config.gate_rows() as u32;
        let gemm = GemmConfig {
            transpose_a: true,
            accumulate,
            ..Default::default()
        };
        let product = Product {
            fold: None,
            config: gemm,
            shape: GemmShape::new(&gemm, rows, input_size, tokens),
            a: grad_gates.clone(),
            b: self.times(input, input_size.into(), &segment.times),
            bias: None,
            output: ("grad_weights", weight),
        };
        self.product(product, out);
        let tokens = u64::from(tokens);
        let block = tokens.div_ceil(BLOCKS).max(SHORTEST_BLOCK);
        let blocks = tokens.div_ceil(block).max(1);
        let columns = u64::from(rows);
        let sums = ("scratch", scratch.sums..scratch.sums + blocks * columns);
        out.push(sum(grad_gates, [tokens, columns, block], &sums, false));
        let bias = ("grad_weights", bias);
        out.push(sum(&sums, [blocks, columns, blocks], &bias, accumulate));
    }

    fn input_gradient(
        &self,
        layer: u32,
        segment: &Segment,
        grad_gates: &Part,
        scratch: &Scratch,
        out: &mut Vec<Dispatch>,
    ) {
        let config = self.config;
        let input_size = config.layer_input_size(layer);
        let output = match layer {
            0 => ("grad_input", 0),
            _ => ("scratch", scratch.inner[(layer - 1) as usize % 2]),
        };
        let gemm = GemmConfig::default();
        let tokens = segment.times.len() as u32 * self.shape.batch;
        let product = Product {
            fold: None,
            config: gemm,
            shape: GemmShape::new(&gemm, tokens, input_size, config.gate_rows() as u32),
            a: grad_gates.clone(),
            b: ("weights", config.packed(layer).weight),
            bias: None,
            output: self.times(output, input_size.into(), &segment.times),
        };
        self.product(product, out);
    }
}

/// Sums of the columns of a matrix, `block` rows each.
fn sum(
    input: &Part,
    [rows, columns, block]: [u64; 3],
    output: &Part,
    accumulate: bool,
) -> Dispatch {
    let operand = |(name, elements): &Part| match elements.is_empty() {
        true => (Operand::Unused, 0),
        false => Operand::elements(name, elements.clone()),
    };
    let (input, input_first) = operand(input);
    let (output, output_first) = operand(output);
    let num_blocks = rows.div_ceil(block).max(1);
    let params = BiasParams {
        rows: rows as u32,
        columns: columns as u32,
        block: block as u32,
        num_blocks: num_blocks as u32,
        input_first,
        output_first,
    };
    Dispatch {
        kernel: Kernel {
            name: "min_recurrent_backward_bias",
            enables: &[],
            parts: Cow::Borrowed(&[BIAS]),
            params: BiasParams::FIELDS,
            storage: &[Access::Read, Access::Write],
            stepped: false,
        },
        constants: vec![("ACCUMULATE", Constant::Bool(accumulate))],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: vec![input, output],
        grid: fold_grid((num_blocks * columns).div_ceil(64)),
        steps: 1,
    }
}

impl MinRecurrent {
    /// How a backward pass will run; pure.
    ///
    /// # Errors
    /// As [`bind_backward`](Self::bind_backward), as far as they do not depend on the buffers.
    pub fn plan_backward(
        &self,
        shape: MinRecurrentShape,
        given: MinRecurrentBackwardGiven,
    ) -> Result<Plan, Error> {
        let capabilities = self.context.capabilities();
        self.config.plan_backward(capabilities, shape, given)
    }

    /// Bytes of scratch that a backward pass of `shape` needs.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`].
    pub fn backward_scratch_size(&self, shape: MinRecurrentShape) -> Result<u64, Error> {
        let plan = self.plan_backward(shape, MinRecurrentBackwardGiven::default())?;
        Ok(plan.scratch_size)
    }

    /// Binds the tensors of a backward pass, after a forward one with a `reserve`.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_backward(
        &self,
        shape: MinRecurrentShape,
        buffers: MinRecurrentBackwardBuffers<'_>,
    ) -> Result<Bound, Error> {
        let plan = self.plan_backward(shape, buffers.given())?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }
}
