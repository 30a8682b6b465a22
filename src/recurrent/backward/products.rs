//! What the gradients of a piece's gates give outside of the loop: the gradients of weights and inputs.

use std::borrow::Cow;
use std::ops::Range;

use super::planner::{Numbered, Piece, Planner};
use super::sums::NormParams;
use crate::ElementType;
use crate::gemm::{Folded, GemmConfig, GemmShape, Part, Product};
use crate::kernel::{Access, COMMON, Dispatch, Kernel, Operand, fold_grid, params};
use crate::recurrent::Cell;

params! {
    struct MaskParams {
        num_elements: u32,
        batch: u32,
        width: u32,
        first_time: u32,
        time_stride: u32,
        row_stride: u32,
        input_first: u32,
        output_first: u32,
    }
}

fn mask(element: ElementType) -> Kernel {
    Kernel {
        name: "recurrent_backward_mask",
        enables: &[],
        parts: Cow::Owned(vec![
            COMMON,
            element.part(),
            include_str!("../../../shaders/recurrent_backward_mask.wgsl"),
        ]),
        params: MaskParams::FIELDS,
        storage: &[Access::Read, Access::Read, Access::Write],
        stepped: false,
    }
}

impl Planner<'_> {
    /// What the gradients of a piece's gates give outside of the loop, of one direction.
    pub(super) fn products(&self, piece: &Piece, direction: u32, out: &mut Vec<Numbered>) {
        let config = self.config;
        let at = piece.layer * config.direction.count() + direction;
        let (hidden, state) = (config.hidden_size, config.state_size());
        let gate_rows = config.cell.num_gates() * hidden;
        let times = self.times(direction, &piece.steps);
        let (_, grads_first) = self.rows(piece, direction);
        let row_len = config.grads_len(config.kept(&self.given));
        let tokens = piece.steps.len() as u32 * self.shape.batch;
        let grads = Matrix::new("scratch", grads_first, row_len);
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
            let rows_first = config.reads_rows_first(piece.layer);
            let vectors = self.forward.tokens(&times, width, rows_first);
            let product = Product {
                config: gemm,
                shape: GemmShape {
                    a_stride: row_len,
                    output_stride: vectors.stride,
                    ..GemmShape::new(&gemm, tokens, width, gate_rows)
                },
                a: grads.part(tokens, gate_rows),
                b: (
                    "weights",
                    start..start + u64::from(gate_rows) * u64::from(width),
                ),
                bias: None,
                fold: vectors.fold.map(|fold| (Folded::Output, fold)),
                output: into,
            };
            out.push((at, product.dispatch(self.capabilities)));
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

    /// What the forward pass has saved of a piece's tokens.
    pub(super) fn saved(&self, piece: &Piece, direction: u32) -> Matrix {
        let row_len = self.config.row_len(true);
        let batch = u64::from(self.shape.batch);
        let chunk_rows = piece.chunk.len() as u64 * batch;
        let within = match (direction + self.reverse()) % 2 {
            1 => piece.chunk.end - piece.steps.end,
            _ => piece.steps.start - piece.chunk.start,
        };
        let row = u64::from(direction) * chunk_rows + u64::from(within) * batch;
        let (name, chunk) = self.workspace(piece);
        let first = chunk + self.forward.scratch.gates + row * u64::from(row_len);
        Matrix::new(name, first, row_len)
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
        let element = self.config.layer_element(layer);
        let rows_first = self.config.reads_rows_first(layer);
        let tokens = self.forward.tokens(times, width, rows_first);
        match layer {
            0 if self.given.lengths => {
                let len = times.len() as u64 * u64::from(batch) * u64::from(width);
                let (input, input_first) = Operand::typed("input", tokens.elements, element);
                let [time_stride, row_stride] = self.forward.strides(rows_first);
                let masked = self.scratch.masked;
                let (output, output_first) = Operand::elements("scratch", masked..masked + len);
                let params = MaskParams {
                    num_elements: len as u32,
                    batch,
                    width,
                    first_time: times.start,
                    time_stride,
                    row_stride,
                    input_first,
                    output_first,
                };
                let lengths = Operand::whole("lengths", 4 * u64::from(batch));
                let dispatch = Dispatch {
                    kernel: mask(element),
                    constants: vec![],
                    params: bytemuck::bytes_of(&params).to_vec(),
                    operands: vec![input, lengths, output],
                    grid: fold_grid(len.div_ceil(64)),
                    steps: 1,
                };
                out.push((at, dispatch));
                Matrix::new("scratch", masked, width)
            }
            0 => Matrix {
                row_len: tokens.stride,
                element,
                fold: tokens.fold,
                ..Matrix::new("input", tokens.elements.start, width)
            },
            // zeros past the end
            _ => {
                let first = self.reserve.layer_output(layer - 1) + tokens.elements.start;
                Matrix::new("reserve", first, width)
            }
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
            b_element: b.element,
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
            fold: b.fold.map(|fold| (Folded::B, fold)),
            output: (name, first..first + u64::from(rows) * u64::from(columns)),
        };
        product.dispatch(self.capabilities)
    }
}

/// Rows of a tensor, the last axis contiguous.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub name: &'static str,
    pub first: u64,
    /// from one row to the next
    pub row_len: u32,
    element: ElementType,
    /// of rows that lie in runs, how many a run has, and how far it is from the next
    fold: Option<[u32; 2]>,
}

impl Matrix {
    fn new(name: &'static str, first: u64, row_len: u32) -> Self {
        Self {
            name,
            first,
            row_len,
            element: ElementType::F32,
            fold: None,
        }
    }

    /// The columns from one on.
    pub fn column(self, column: u32) -> Self {
        Self {
            first: self.first + u64::from(column),
            ..self
        }
    }

    /// The elements that some rows and columns span.
    pub fn part(self, rows: u32, columns: u32) -> Part {
        let last = u64::from(rows.saturating_sub(1));
        let [inner, outer] = self.fold.unwrap_or([u32::MAX, 0]).map(u64::from);
        let before = last / inner * outer + last % inner * u64::from(self.row_len);
        (
            self.name,
            self.first..self.first + before + u64::from(columns),
        )
    }
}
