//! The dispatches of a backward call.

use std::borrow::Cow;

use super::AttentionBackwardGiven;
use super::tile::{Blocked, Side, Tile, bias_kernel};
use crate::Error;
use crate::attention::AttentionShape;
use crate::attention::gathered::{Blocks, Gathered};
use crate::attention::plan::groups;
use crate::attention::problem::{Params, Problem};
use crate::attention::tensors::{Chunk, Tensor, Tensors, check_injective};
use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, fold_grid};

/// Where the gradients lie: like their tensors, but f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gradients {
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Option<Tensor>,
}

impl Gradients {
    pub fn new(tensors: &Tensors) -> Self {
        Self {
            grad_output: tensors.output.gradient("grad_output"),
            query: tensors.query.gradient("grad_query"),
            key: tensors.key.gradient("grad_key"),
            value: tensors.value.gradient("grad_value"),
            bias: tensors.bias.map(|bias| bias.gradient("grad_bias")),
        }
    }

    pub fn all(&self) -> Vec<Tensor> {
        // keys and values have fewer heads than are asked about here, which makes the answer safe
        [self.grad_output, self.query]
            .into_iter()
            .chain(self.bias)
            .collect()
    }

    pub fn check(&self, shape: &AttentionShape) -> Result<(), Error> {
        let batches = if shape.packed.is_some() {
            1
        } else {
            shape.batch.into()
        };
        let (heads, kv_heads) = (shape.num_heads.into(), shape.num_kv_heads.into());
        check_injective(&self.query, "query_layout token stride", batches, heads)?;
        check_injective(&self.key, "key_layout token stride", batches, kv_heads)?;
        check_injective(&self.value, "value_layout token stride", batches, kv_heads)
    }
}

/// What the dispatches of a call depend on.
pub(super) struct Planner<'a> {
    pub problem: Problem<'a>,
    pub gradients: Gradients,
    pub tiles: [Tile; 2],
    pub bias_tile: Blocked,
    pub blocks: Option<Blocks>,
    /// In words.
    pub scratch: u64,
}

impl Planner<'_> {
    pub fn chunk(
        &self,
        chunk: &Chunk,
        given: AttentionBackwardGiven,
        out: &mut Vec<Dispatch>,
    ) -> Result<(), Error> {
        let shape = self.problem.shape;
        if shape.q_len > 0 {
            out.push(self.statistics(chunk)?);
            out.push(self.side(chunk, Side::Query)?);
        }
        if shape.kv_len > 0 {
            out.push(self.side(chunk, Side::Key)?);
        }
        if given.grad_bias && shape.q_len > 0 && shape.kv_len > 0 {
            out.push(self.bias(chunk)?);
        }
        Ok(())
    }

    /// The parameters of all backward kernels, and the operands that they begin with.
    fn params(&self, chunk: &Chunk) -> (Params, Vec<Operand>) {
        let Problem {
            tensors, gathered, ..
        } = self.problem;
        let (params, inputs) = self.problem.params(chunk);
        let heads = self.problem.heads(chunk);
        let (grad_output, output_first) = self.gradients.grad_output.operand(&chunk.0, &heads);
        let params = Params {
            output_first,
            output_batch: tensors.output.batch as u32,
            output_head: tensors.output.head as u32,
            output_token: tensors.output.token as u32,
            log_sum_exp_batch: tensors.log_sum_exp.batch as u32,
            log_sum_exp_head: tensors.log_sum_exp.head as u32,
            statistics_at: gathered.len as u32,
            ..params
        };
        let operands = vec![
            inputs.query,
            inputs.key,
            inputs.value,
            inputs.bias,
            Gathered::operand(self.scratch),
            grad_output,
        ];
        (params, operands)
    }

    fn statistics(&self, chunk: &Chunk) -> Result<Dispatch, Error> {
        let Problem { shape, tensors, .. } = self.problem;
        let heads = self.problem.heads(chunk);
        let (params, mut operands) = self.params(chunk);
        let (output, _) = tensors.output.operand(&chunk.0, &heads);
        let (log_sum_exp, log_sum_exp_first) = tensors.log_sum_exp.operand(&chunk.0, &heads);
        let num_tiles = shape.q_len.div_ceil(64);
        let batches = chunk.0.end - chunk.0.start;
        let num_groups = groups(u64::from(num_tiles) * (heads.end - heads.start), batches)?;
        let params = Params {
            num_tiles,
            num_groups,
            log_sum_exp_first,
            ..params
        };
        let mut constants = self.problem.constants(None);
        constants.push(("FOLDED", Constant::Bool(false)));
        Ok(Dispatch {
            kernel: Kernel {
                name: "attention_backward_statistics",
                enables: &[],
                parts: Cow::Borrowed(&[
                    COMMON,
                    include_str!("../../../shaders/attention_problem.wgsl"),
                    include_str!("../../../shaders/attention_backward_statistics.wgsl"),
                ]),
                params: Params::FIELDS,
                storage: &[Access::Read, Access::Read, Access::Read, Access::Write],
                stepped: false,
            },
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                output,
                operands.swap_remove(5),
                log_sum_exp,
                Gathered::operand(self.scratch),
            ],
            grid: fold_grid(num_groups.into()),
            steps: 1,
        })
    }

    fn side(&self, chunk: &Chunk, side: Side) -> Result<Dispatch, Error> {
        let shape = self.problem.shape;
        let (batches, kv_heads) = chunk;
        let (tile, len, heads) = match side {
            Side::Query => (self.tiles[0], shape.q_len, self.problem.heads(chunk)),
            Side::Key => (self.tiles[1], shape.kv_len, kv_heads.clone()),
        };
        let (params, mut operands) = self.params(chunk);
        let own = |tensor: &Tensor| tensor.operand(batches, &heads);
        let (gradient, gradient_first) = match side {
            Side::Query => own(&self.gradients.query),
            Side::Key => own(&self.gradients.key),
        };
        let (second_gradient, second_gradient_first) = match side {
            Side::Query => (Operand::Unused, 0),
            Side::Key => own(&self.gradients.value),
        };
        let num_tiles = len.div_ceil(tile.row_tile());
        let num_heads = heads.end - heads.start;
        let num_groups = groups(
            u64::from(num_tiles) * num_heads,
            batches.end - batches.start,
        )?;
        let params = Params {
            num_tiles,
            num_groups,
            gradient_first,
            second_gradient_first,
            ..params
        };
        operands.extend([gradient, second_gradient]);
        let mut constants = self.problem.constants(self.blocks);
        let config = self.problem.config;
        constants.extend(tile.constants(side, [config.head_dim, config.value_dim()]));
        Ok(Dispatch {
            kernel: tile.kernel(side, &self.problem),
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands,
            grid: fold_grid(num_groups.into()),
            steps: 1,
        })
    }

    fn bias(&self, chunk: &Chunk) -> Result<Dispatch, Error> {
        let shape = self.problem.shape;
        let axes = shape.bias_axes;
        let heads = self.problem.heads(chunk);
        let tile = self.bias_tile;
        let (params, mut operands) = self.params(chunk);
        let (gradient, gradient_first) = match &self.gradients.bias {
            Some(bias) => bias.operand(&chunk.0, &heads),
            None => (Operand::Unused, 0),
        };
        let count = |has: bool, len: u64| if has { len } else { 1 };
        let tiles = count(axes.query, shape.q_len.div_ceil(tile.row_tile()).into())
            * count(axes.key, shape.kv_len.div_ceil(tile.other_tile()).into());
        let problems = count(axes.batch, chunk.0.end - chunk.0.start)
            * count(axes.head, heads.end - heads.start);
        let num_groups = groups(tiles, problems)?;
        let params = Params {
            num_groups,
            gradient_first,
            ..params
        };
        operands.extend([gradient, Operand::Unused]);
        // a chunk that is not the first to see an element adds to it
        let add = !axes.batch && chunk.0.start > 0 || !axes.head && heads.start > 0;
        let mut constants = self.problem.constants(self.blocks);
        constants.extend(tile.constants());
        constants.extend([
            ("ROWS_ARE_KEYS", Constant::Bool(false)),
            ("BIAS_BATCH", Constant::Bool(axes.batch)),
            ("BIAS_HEADS", Constant::Bool(axes.head)),
            ("BIAS_QUERIES", Constant::Bool(axes.query)),
            ("BIAS_KEYS", Constant::Bool(axes.key)),
            ("ADD", Constant::Bool(add)),
        ]);
        Ok(Dispatch {
            kernel: bias_kernel(&self.problem),
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands,
            grid: fold_grid(num_groups.into()),
            steps: 1,
        })
    }

    /// Of all heads and batch rows at once: it reads nothing but scratch.
    pub fn sinks(&self) -> Result<Dispatch, Error> {
        let shape = self.problem.shape;
        let everything = (0..shape.batch.into(), 0..shape.num_kv_heads.into());
        let (params, _) = self.params(&everything);
        let params = Params {
            num_groups: shape.num_heads,
            ..params
        };
        let mut constants = self.problem.constants(None);
        constants.push(("FOLDED", Constant::Bool(false)));
        Ok(Dispatch {
            kernel: Kernel {
                name: "attention_backward_sinks",
                enables: &[],
                parts: Cow::Borrowed(&[
                    COMMON,
                    include_str!("../../../shaders/attention_problem.wgsl"),
                    include_str!("../../../shaders/attention_backward_sinks.wgsl"),
                ]),
                params: Params::FIELDS,
                storage: &[Access::Read, Access::Write],
                stepped: false,
            },
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                Gathered::operand(self.scratch),
                Operand::whole("grad_sinks", 4 * u64::from(shape.num_heads)),
            ],
            grid: fold_grid(shape.num_heads.into()),
            steps: 1,
        })
    }
}
