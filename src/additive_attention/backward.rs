//! The gradients of additive attention: how they are planned and bound.

use std::ops::Range;

use super::plan::{Planner, Tensor, window};
use super::tile::{Role, prepare, sum};
use super::{AdditiveAttention, AdditiveAttentionConfig, AdditiveAttentionShape, check_given};
use crate::kernel::{Constant, Dispatch, Operand, WINDOW_ALIGNMENT, fold_grid, params};
use crate::{Bound, Capabilities, Error, Plan};

/// The tensors of a backward call, contiguous. `T` is the configuration's [`ElementType`](crate::ElementType).
#[derive(Debug, Clone, Copy)]
pub struct AdditiveAttentionBackwardBuffers<'a> {
    /// `[batch, q_len, dim]` of `T`, read.
    pub query: wgpu::BufferSlice<'a>,
    /// `[batch, kv_len, dim]` of `T`, read.
    pub key: wgpu::BufferSlice<'a>,
    /// `[batch, kv_len, value_dim]` of `T`, read.
    pub value: wgpu::BufferSlice<'a>,
    /// `[dim]` f32, read.
    pub v: wgpu::BufferSlice<'a>,
    /// As in the forward call.
    pub mask: Option<wgpu::BufferSlice<'a>>,
    /// As in the forward call.
    pub kv_lengths: Option<wgpu::BufferSlice<'a>>,
    /// `[batch, q_len, value_dim]` f32, read: what the forward call wrote.
    pub output: wgpu::BufferSlice<'a>,
    /// `[batch, q_len]` f32, read: what the forward call wrote.
    pub log_sum_exp: wgpu::BufferSlice<'a>,
    /// `[batch, q_len, value_dim]` f32, read.
    pub grad_output: wgpu::BufferSlice<'a>,
    /// `[batch, q_len, dim]` f32, written.
    pub grad_query: wgpu::BufferSlice<'a>,
    /// `[batch, kv_len, dim]` f32, written.
    pub grad_key: wgpu::BufferSlice<'a>,
    /// `[batch, kv_len, value_dim]` f32, written.
    pub grad_value: wgpu::BufferSlice<'a>,
    /// `[dim]` f32, written.
    pub grad_v: wgpu::BufferSlice<'a>,
    /// [`scratch_size_backward`](AdditiveAttention::scratch_size_backward) bytes, read and written.
    pub scratch: wgpu::BufferSlice<'a>,
}

impl<'a> AdditiveAttentionBackwardBuffers<'a> {
    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let mut slices = vec![
            ("query", self.query),
            ("key", self.key),
            ("value", self.value),
            ("v", self.v),
            ("output", self.output),
            ("log_sum_exp", self.log_sum_exp),
            ("grad_output", self.grad_output),
            ("grad_query", self.grad_query),
            ("grad_key", self.grad_key),
            ("grad_value", self.grad_value),
            ("grad_v", self.grad_v),
            ("scratch", self.scratch),
        ];
        slices.extend(self.mask.map(|slice| ("mask", slice)));
        slices.extend(self.kv_lengths.map(|slice| ("kv_lengths", slice)));
        slices
    }
}

params! {
    pub(super) struct Params {
        dim: u32,
        value_dim: u32,
        q_len: u32,
        kv_len: u32,
        num_tiles: u32,
        num_groups: u32,
        query_first: u32,
        key_first: u32,
        value_first: u32,
        grad_output_first: u32,
        mask_first: u32,
        mask_batch: u32,
        mask_row: u32,
        mask_column: u32,
        prepared_v: u32,
        prepared_lengths: u32,
        grad_terms_first: u32,
        grad_second_first: u32,
    }
}

params! {
    pub(super) struct PrepareParams {
        dim: u32,
        value_dim: u32,
        kv_len: u32,
        num_rows: u32,
        num_batches: u32,
        has_lengths: u32,
        v_first: u32,
        kv_lengths_first: u32,
        output_first: u32,
        grad_output_first: u32,
        log_sum_exp_first: u32,
    }
}

params! {
    pub(super) struct SumParams {
        dim: u32,
        num_rows: u32,
        rows_each: u32,
        num_items: u32,
        accumulate: u32,
        terms_first: u32,
        sums_first: u32,
    }
}

/// Rows of `grad_v`'s parts that one invocation sums.
const SUMMED_ROWS: u64 = 256;

/// Invocations of a workgroup of the kernels that have one per element.
const FLAT: u64 = 64;

/// Bytes of the scratch that a piece of the batch uses.
struct Scratch {
    /// The statistics of the queries, `v` and the lengths.
    prepared: Range<u64>,
    /// `grad_v` of each lane.
    lanes: Range<u64>,
    /// `grad_v` of each block of lanes.
    blocks: Range<u64>,
}

impl Planner<'_> {
    /// Lanes of the launch whose rows are queries, for one batch row.
    fn query_lanes(&self) -> u32 {
        self.shape.q_len.div_ceil(self.tile.rows_each()) * self.tile.threads
    }

    fn scratch(&self, num_batches: u64) -> Scratch {
        let (dim, q_len) = (u64::from(self.config.dim), u64::from(self.shape.q_len));
        let lanes = num_batches * u64::from(self.query_lanes());
        let mut end = 0_u64;
        let mut take = |words: u64| {
            let start = end.next_multiple_of(WINDOW_ALIGNMENT);
            end = start + 4 * words;
            start..end
        };
        Scratch {
            prepared: take(num_batches * (2 * q_len + 1) + dim),
            lanes: take(lanes * dim),
            blocks: take(lanes.div_ceil(SUMMED_ROWS) * dim),
        }
    }

    fn backward(&self, batches: &Range<u64>) -> Vec<Dispatch> {
        let num_batches = batches.end - batches.start;
        let scratch = self.scratch(num_batches);
        let mut dispatches = vec![self.prepare(batches, &scratch)];
        if self.shape.q_len > 0 {
            dispatches.push(self.role(Role::Query, batches, &scratch));
        }
        if self.shape.kv_len > 0 {
            dispatches.push(self.role(Role::Key, batches, &scratch));
        }
        let lanes = num_batches * u64::from(self.query_lanes());
        let blocks = lanes.div_ceil(SUMMED_ROWS);
        if lanes > 0 {
            let sums = bytes("scratch", &scratch.blocks);
            dispatches.push(self.sum(bytes("scratch", &scratch.lanes), lanes, blocks, sums, false));
        }
        let terms = bytes("scratch", &scratch.blocks);
        let (grad_v, _) = window("grad_v", 0..self.config.dim.into(), 4);
        dispatches.push(self.sum(terms, blocks, 1, grad_v, batches.start > 0));
        dispatches
    }

    fn prepare(&self, batches: &Range<u64>, scratch: &Scratch) -> Dispatch {
        let (config, shape) = (self.config, &self.shape);
        let num_batches = batches.end - batches.start;
        let num_rows = num_batches * u64::from(shape.q_len);
        let (v, v_first) = window("v", 0..config.dim.into(), 4);
        let (lengths, kv_lengths_first) = self.kv_lengths(batches);
        let (output, output_first) = self.output().operand(batches);
        let (grad_output, grad_output_first) = self.grad_output().operand(batches);
        let (log_sum_exp, log_sum_exp_first) = self.log_sum_exp().operand(batches);
        let params = PrepareParams {
            dim: config.dim,
            value_dim: config.value_dim(),
            kv_len: shape.kv_len,
            num_rows: num_rows as u32,
            num_batches: num_batches as u32,
            has_lengths: shape.kv_lengths.into(),
            v_first,
            kv_lengths_first,
            output_first,
            grad_output_first,
            log_sum_exp_first,
        };
        let items = num_rows + u64::from(config.dim) + num_batches;
        Dispatch {
            kernel: prepare(),
            constants: vec![],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                v,
                lengths,
                output,
                grad_output,
                log_sum_exp,
                bytes("scratch", &scratch.prepared),
            ],
            grid: fold_grid(items.div_ceil(FLAT)),
            steps: 1,
        }
    }

    fn role(&self, role: Role, batches: &Range<u64>, scratch: &Scratch) -> Dispatch {
        let (config, shape) = (self.config, &self.shape);
        let num_batches = batches.end - batches.start;
        let [query, key, value] = self.inputs().map(|tensor| tensor.operand(batches));
        let grad_output = self.grad_output().operand(batches);
        let mask = self.mask(batches);
        let [grad_query, grad_key, grad_value] = self.gradients();
        let (rows, mask_row, mask_column, grad_terms, grad_second) = match role {
            Role::Query => {
                let lanes = (bytes("scratch", &scratch.lanes), 0);
                (shape.q_len, mask.query, mask.key, grad_query, lanes)
            }
            Role::Key => {
                let values = grad_value.operand(batches);
                (shape.kv_len, mask.key, mask.query, grad_key, values)
            }
        };
        let grad_terms = grad_terms.operand(batches);
        let num_tiles = rows.div_ceil(self.tile.rows_each());
        let num_groups = u64::from(num_tiles) * num_batches;
        let prepared_v = 2 * num_batches * u64::from(shape.q_len);
        let params = Params {
            dim: config.dim,
            value_dim: config.value_dim(),
            q_len: shape.q_len,
            kv_len: shape.kv_len,
            num_tiles,
            num_groups: num_groups as u32,
            query_first: query.1,
            key_first: key.1,
            value_first: value.1,
            grad_output_first: grad_output.1,
            mask_first: mask.first,
            mask_batch: mask.batch,
            mask_row,
            mask_column,
            prepared_v: prepared_v as u32,
            prepared_lengths: prepared_v as u32 + config.dim,
            grad_terms_first: grad_terms.1,
            grad_second_first: grad_second.1,
        };
        let mut constants = self.tile.constants(shape.mask.is_some());
        constants.push(("ROWS_ARE_KEYS", Constant::Bool(role == Role::Key)));
        Dispatch {
            kernel: self.tile.backward(config.element, role),
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                query.0,
                key.0,
                value.0,
                grad_output.0,
                mask.operand,
                bytes("scratch", &scratch.prepared),
                grad_terms.0,
                grad_second.0,
            ],
            grid: fold_grid(num_groups),
            steps: 1,
        }
    }

    /// Sums of `num_rows` rows in `blocks` blocks.
    fn sum(
        &self,
        terms: Operand,
        num_rows: u64,
        blocks: u64,
        sums: Operand,
        accumulate: bool,
    ) -> Dispatch {
        let num_items = blocks * u64::from(self.config.dim);
        let params = SumParams {
            dim: self.config.dim,
            num_rows: num_rows as u32,
            rows_each: num_rows.div_ceil(blocks) as u32,
            num_items: num_items as u32,
            accumulate: accumulate.into(),
            terms_first: 0,
            sums_first: 0,
        };
        Dispatch {
            kernel: sum(),
            constants: vec![],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![terms, sums],
            grid: fold_grid(num_items.div_ceil(FLAT)),
            steps: 1,
        }
    }

    fn grad_output(&self) -> Tensor {
        let name = "grad_output";
        Tensor {
            name,
            ..self.output()
        }
    }

    /// Of query, key and value.
    fn gradients(&self) -> [Tensor; 3] {
        let [query, key, value] = self.inputs();
        let gradient = |name, tensor| Tensor {
            name,
            size: 4,
            ..tensor
        };
        [
            gradient("grad_query", query),
            gradient("grad_key", key),
            gradient("grad_value", value),
        ]
    }
}

fn bytes(name: &'static str, range: &Range<u64>) -> Operand {
    match range.is_empty() {
        true => Operand::Unused,
        false => Operand::Slice {
            name,
            window: range.clone(),
        },
    }
}

impl AdditiveAttentionConfig {
    /// How the gradients of a call are computed on a device with `capabilities`; pure.
    ///
    /// Scores are computed again in both of the two large launches; `flops` counts what the gradients need,
    /// and the scores once.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_backward(
        &self,
        capabilities: &Capabilities,
        shape: AdditiveAttentionShape,
    ) -> Result<Plan, Error> {
        let planner = Planner::new(self, capabilities, shape)?;
        let mut tensors = planner.inputs().to_vec();
        tensors.extend(planner.gradients());
        tensors.push(planner.output());
        // two numbers per query, and the length
        let each = 2 * u128::from(shape.q_len) + 1 + u128::from(self.dim);
        let (name, size) = ("scratch", 4);
        tensors.push(Tensor { name, each, size });
        tensors.push(Tensor::new(name, [planner.query_lanes(), self.dim], size));
        let chunks = planner.chunks(&tensors)?;
        let mut dispatches: Vec<_> = chunks
            .iter()
            .flat_map(|chunk| planner.backward(chunk))
            .collect();
        if chunks.is_empty() {
            dispatches = planner.backward(&(0..0));
        }
        let largest = chunks
            .iter()
            .map(|chunk| planner.scratch(chunk.end - chunk.start).blocks.end)
            .max();
        let [batch, q_len, kv_len] = [shape.batch, shape.q_len, shape.kv_len].map(f64::from);
        let [dim, value_dim] = [self.dim, self.value_dim()].map(f64::from);
        let terms = batch * (q_len + kv_len) * dim;
        let values = batch * (q_len + kv_len) * value_dim;
        let size = self.element.size() as f64;
        Ok(Plan {
            variant: planner.variant,
            describe: format!("backward, {}", planner.tile.describe()),
            dispatches,
            scratch_size: largest.unwrap_or_else(|| planner.scratch(0).blocks.end),
            // the scores; of each of grad_query, grad_key and grad_v a multiply-add, 1 - tanh^2 another;
            // of grad_output value^T and of grad_value one each
            flops: batch * q_len * kv_len * (12.0 * dim + 4.0 * value_dim),
            bytes: (terms + values) * size + 4.0 * (terms + 2.0 * values),
        })
    }
}

impl AdditiveAttention {
    /// How the gradients of a call will be computed; pure.
    ///
    /// # Errors
    /// As [`AdditiveAttentionConfig::plan_backward`].
    pub fn plan_backward(&self, shape: AdditiveAttentionShape) -> Result<Plan, Error> {
        self.config
            .plan_backward(self.context.capabilities(), shape)
    }

    /// Bytes of scratch that [`bind_backward`](Self::bind_backward) needs for `shape`: less than twice the
    /// size of an f32 query, and a little.
    ///
    /// # Errors
    /// As [`AdditiveAttentionConfig::plan_backward`].
    pub fn scratch_size_backward(&self, shape: AdditiveAttentionShape) -> Result<u64, Error> {
        Ok(self.plan_backward(shape)?.scratch_size)
    }

    /// Binds the tensors of a backward call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Buffer`], [`Error::Operand`], [`Error::Aliased`], [`Error::Limit`]: see there.
    pub fn bind_backward(
        &self,
        shape: AdditiveAttentionShape,
        buffers: AdditiveAttentionBackwardBuffers<'_>,
    ) -> Result<Bound, Error> {
        check_given("mask", shape.mask.is_some(), buffers.mask)?;
        check_given("kv_lengths", shape.kv_lengths, buffers.kv_lengths)?;
        let plan = self.plan_backward(shape)?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }
}
