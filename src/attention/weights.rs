//! The softmax's weights, for those who want to look at them: of all rows and heads, or of some.

use std::borrow::Cow;

use super::gathered::Gathered;
use super::plan::groups;
use super::problem::{Params, Problem};
use super::tensors::{Tensor, Tensors};
use super::{Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape};
use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, fold_grid};
use crate::plan::check_elements;
use crate::{Bound, Capabilities, Error, Plan, Variant};

/// Query heads and rows whose weights are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The first query head.
    pub first_head: u32,
    /// How many.
    pub num_heads: u32,
    /// The first query.
    pub first_row: u32,
    /// How many.
    pub num_rows: u32,
}

impl Chosen {
    /// All rows of all heads.
    pub fn all(shape: &AttentionShape) -> Self {
        Self {
            first_head: 0,
            num_heads: shape.num_heads,
            first_row: 0,
            num_rows: shape.q_len,
        }
    }
}

/// The tensors of a call for weights.
#[derive(Debug, Clone, Copy)]
pub struct AttentionWeightsBuffers<'a> {
    /// Those of the forward pass, `log_sum_exp` as it has written it; `value` and `output` are not touched.
    pub forward: AttentionBuffers<'a>,
    /// `[batch, chosen heads, chosen rows, kv_len]`, written: the weights before dropout.
    pub weights: wgpu::BufferSlice<'a>,
}

impl Attention {
    /// Binds the tensors of a call for the weights of some rows and heads.
    ///
    /// # Errors
    /// Those of [`Attention::bind`](Self::bind); [`Error::Operand`] for packed sequences.
    pub fn bind_weights(
        &self,
        shape: AttentionShape,
        chosen: Chosen,
        buffers: AttentionWeightsBuffers<'_>,
    ) -> Result<Bound, Error> {
        let forward = &buffers.forward;
        forward.check(&self.config, &shape)?;
        if forward.log_sum_exp.is_none() {
            return Err(Error::Operand {
                name: "log_sum_exp",
                problem: "is needed and missing",
            });
        }
        let plan = self.config.plan_weights(
            self.context.capabilities(),
            shape,
            chosen,
            forward.kv_lengths.is_some(),
        )?;
        let mut slices = forward.slices();
        slices.push(("weights", buffers.weights));
        self.context.bind_own(&plan.dispatches, &slices)
    }
}

impl AttentionConfig {
    /// How a call for weights runs; scratch as in the forward pass.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows and heads that the shape does not have, [`Error::Limit`], [`Error::Operand`] for
    /// packed sequences.
    pub fn plan_weights(
        &self,
        capabilities: &Capabilities,
        shape: AttentionShape,
        chosen: Chosen,
        kv_lengths: bool,
    ) -> Result<Plan, Error> {
        let given = AttentionGiven {
            log_sum_exp: true,
            kv_lengths,
        };
        self.check(&shape, given)?;
        if shape.packed.is_some() {
            return Err(Error::Operand {
                name: "weights",
                problem: "packed sequences have none",
            });
        }
        for (name, first, count, len) in [
            (
                "heads",
                chosen.first_head,
                chosen.num_heads,
                shape.num_heads,
            ),
            ("rows", chosen.first_row, chosen.num_rows, shape.q_len),
        ] {
            let end = u64::from(first) + u64::from(count);
            if end > len.into() {
                return Err(Error::shape(name, end, format!("at most {len}")));
            }
        }
        let tensors = Tensors::new(self, &shape);
        tensors.check(&shape)?;
        let elements = [shape.batch, chosen.num_heads, chosen.num_rows, shape.kv_len];
        check_elements(elements.iter().map(|&len| u128::from(len)).product())?;
        let gathered = Gathered::new(self, &shape, given, None);
        gathered.check(capabilities)?;
        let problem = Problem {
            config: self,
            shape: &shape,
            given,
            tensors: &tensors,
            gathered: &gathered,
            cpu: capabilities.cpu,
        };
        let weights = Tensor::weights(chosen.num_heads, chosen.num_rows, shape.kv_len);
        let mut dispatches = Vec::new();
        if elements.iter().all(|&len| len > 0) {
            gathered.dispatches(&shape, None, &mut dispatches);
            for chunk in tensors.chunks(&shape, &[weights], capabilities.storage_binding_size)? {
                let heads = problem.heads(&chunk);
                let first = u64::from(chosen.first_head);
                let end = first + u64::from(chosen.num_heads);
                let own = heads.start.max(first)..heads.end.min(end);
                if own.is_empty() {
                    continue;
                }
                let (params, inputs) = problem.params(&chunk);
                let (log_sum_exp, log_sum_exp_first) =
                    tensors.log_sum_exp.operand(&chunk.0, &heads);
                let (output, output_first) =
                    weights.operand(&chunk.0, &(own.start - first..own.end - first));
                let num_tiles = chosen.num_rows.div_ceil(8);
                let num_splits = shape.kv_len.div_ceil(32);
                let tiles = u64::from(num_tiles) * u64::from(num_splits);
                let batches = chunk.0.end - chunk.0.start;
                let num_groups = groups(tiles * (own.end - own.start), batches)?;
                let params = Params {
                    num_tiles,
                    num_splits,
                    split_keys: 32,
                    num_groups,
                    output_first,
                    output_batch: weights.batch as u32,
                    output_head: weights.head as u32,
                    output_token: weights.token as u32,
                    log_sum_exp_first,
                    log_sum_exp_batch: tensors.log_sum_exp.batch as u32,
                    log_sum_exp_head: tensors.log_sum_exp.head as u32,
                    chosen_head_first: (own.start - heads.start) as u32,
                    chosen_heads: (own.end - own.start) as u32,
                    chosen_row_first: chosen.first_row,
                    chosen_rows: chosen.num_rows,
                    ..params
                };
                let aux = Gathered::operand(gathered.len);
                dispatches.push(self.weights(
                    &problem,
                    &params,
                    vec![
                        inputs.query,
                        inputs.key,
                        inputs.bias,
                        aux,
                        log_sum_exp,
                        output,
                    ],
                ));
            }
        }
        let pairs = elements.iter().map(|&len| f64::from(len)).product::<f64>();
        Ok(Plan {
            variant: Variant::Portable,
            describe: "weights, 8 queries x 32 keys".into(),
            dispatches,
            scratch_size: 4 * gathered.len,
            flops: 2.0 * f64::from(self.head_dim) * pairs,
            bytes: 4.0 * pairs,
        })
    }

    fn weights(&self, problem: &Problem<'_>, params: &Params, operands: Vec<Operand>) -> Dispatch {
        let mut constants = problem.constants(None);
        constants.push(("FOLDED", Constant::Bool(false)));
        Dispatch {
            kernel: Kernel {
                name: "attention_weights",
                enables: &[],
                parts: Cow::Owned(vec![
                    COMMON,
                    self.element.part(),
                    include_str!("../../shaders/philox.wgsl"),
                    include_str!("../../shaders/attention_problem.wgsl"),
                    include_str!("../../shaders/attention_scores.wgsl"),
                    include_str!("../../shaders/attention_weights.wgsl"),
                ]),
                params: Params::FIELDS,
                storage: &[
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Write,
                ],
                stepped: false,
            },
            constants,
            params: bytemuck::bytes_of(params).to_vec(),
            operands,
            grid: fold_grid(params.num_groups.into()),
            steps: 1,
        }
    }
}
