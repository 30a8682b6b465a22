//! Sums over the tokens of a piece: the gradients of biases and peepholes, and the norms of each step.

use std::borrow::Cow;
use std::ops::Range;

use super::planner::{Numbered, Piece, Planner};
use super::products::Matrix;
use crate::gradient_clip::NORM_PAIR;
use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, fold_grid, params};
use crate::recurrent::Cell;

params! {
    struct SumParams {
        num_rows: u32,
        num_columns: u32,
        num_groups: u32,
        a_first: u32,
        a_row: u32,
        factor_first: u32,
        factor_row: u32,
        output_first: u32,
    }
}

const SUMS: Kernel = Kernel {
    name: "recurrent_backward_sums",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        include_str!("../../../shaders/recurrent_backward_sums.wgsl"),
    ]),
    params: SumParams::FIELDS,
    storage: &[Access::Read, Access::Read, Access::Write],
    stepped: false,
};

params! {
    pub(super) struct NormParams {
        num_steps: u32,
        num_rows: u32,
        num_columns: u32,
        a_first: u32,
        a_row: u32,
        output_first: u32,
    }
}

const NORMS: Kernel = Kernel {
    name: "recurrent_backward_norms",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        NORM_PAIR,
        include_str!("../../../shaders/recurrent_backward_norms.wgsl"),
    ]),
    params: NormParams::FIELDS,
    storage: &[Access::Read, Access::Write],
    stepped: false,
};

impl Planner<'_> {
    /// The norms of some times of a layer and direction; of no rows they are 0.
    pub(super) fn norms(
        &self,
        at: u32,
        times: &Range<u32>,
        a: Operand,
        params: NormParams,
    ) -> Dispatch {
        let first = u64::from(at) * u64::from(self.shape.seq_len);
        let own = first + u64::from(times.start)..first + u64::from(times.end);
        let (output, output_first) = Operand::elements("grad_norms", own);
        let params = NormParams {
            num_steps: times.end - times.start,
            output_first,
            ..params
        };
        Dispatch {
            kernel: NORMS,
            constants: vec![],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![a, output],
            grid: fold_grid(params.num_steps.into()),
            steps: 1,
        }
    }

    /// The gradients of the biases and the peepholes.
    pub(super) fn sums(
        &self,
        piece: &Piece,
        direction: u32,
        tokens: u32,
        grads: Matrix,
        out: &mut Vec<Numbered>,
    ) {
        let config = self.config;
        let at = piece.layer * config.direction.count() + direction;
        let hidden = config.hidden_size;
        let gates = config.cell.num_gates();
        let mut sum = |a: Matrix, factor: Option<Matrix>, columns: u32, name, first: u32| {
            let (a_operand, a_first) = Operand::elements(a.name, a.part(tokens, columns).1);
            let (factor_operand, factor_first) = match factor {
                Some(factor) => Operand::elements(factor.name, factor.part(tokens, columns).1),
                None => (Operand::Unused, 0),
            };
            let own = u64::from(first)..u64::from(first + columns);
            let (output, output_first) = Operand::elements(name, own);
            let params = SumParams {
                num_rows: tokens,
                num_columns: columns,
                num_groups: columns.div_ceil(32),
                a_first,
                a_row: a.row_len,
                factor_first,
                factor_row: factor.map_or(0, |factor| factor.row_len),
                output_first,
            };
            let dispatch = Dispatch {
                kernel: SUMS,
                constants: vec![
                    ("FACTOR", Constant::Bool(factor.is_some())),
                    ("ACCUMULATE", Constant::Bool(!piece.first)),
                ],
                params: bytemuck::bytes_of(&params).to_vec(),
                operands: vec![a_operand, factor_operand, output],
                grid: fold_grid(params.num_groups.into()),
                steps: 1,
            };
            out.push((at, dispatch));
        };
        if self.given.bias {
            sum(grads, None, gates * hidden, "grad_bias_ih", 0);
            match config.cell {
                Cell::Gru => {
                    sum(grads, None, 2 * hidden, "grad_bias_hh", 0);
                    let n = grads.column(3 * hidden);
                    sum(n, None, hidden, "grad_bias_hh", 2 * hidden);
                }
                _ => sum(grads, None, gates * hidden, "grad_bias_hh", 0),
            }
        }
        if config.peephole {
            let c = self.saved(piece, direction).column(gates * hidden);
            let new_c = grads.column(config.grads() * hidden);
            for (which, gate, c) in [(0, 0, c), (1, 1, c), (2, 3, new_c)] {
                let a = grads.column(gate * hidden);
                sum(a, Some(c), hidden, "grad_peephole", which * hidden);
            }
        }
    }
}
