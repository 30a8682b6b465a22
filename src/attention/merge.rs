//! Results of attention over parts of the keys, merged by their `log_sum_exp`: of the splits of a long cache, or
//! of devices that have a share of a sequence each.

use std::borrow::Cow;

use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, fold_grid, params};
use crate::plan::check_elements;
use crate::{Bound, Context, Error, Plan, Variant};

params! {
    pub(super) struct Params {
        num_rows: u32,
        num_elements: u32,
        num_heads: u32,
        q_len: u32,
        parts_first: u32,
        parts_log_sum_exp_first: u32,
        output_first: u32,
        output_batch: u32,
        output_head: u32,
        output_token: u32,
        log_sum_exp_first: u32,
        write_log_sum_exp: u32,
    }
}

/// One launch; `operands` as the shader binds them.
pub(super) fn dispatch(
    params: &Params,
    dim: u32,
    num_parts: u32,
    two_tensors: bool,
    operands: Vec<Operand>,
) -> Dispatch {
    // four parts at least for each that shares an element
    let shares = 1 << (num_parts / 4).clamp(1, 16).ilog2();
    let elements = if shares > 1 { 256 / shares } else { 64 };
    Dispatch {
        kernel: Kernel {
            name: "attention_merge",
            enables: &[],
            parts: Cow::Borrowed(&[COMMON, include_str!("../../shaders/attention_merge.wgsl")]),
            params: Params::FIELDS,
            storage: &[
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Write,
                Access::Write,
            ],
            stepped: false,
        },
        constants: vec![
            ("DIM", Constant::U32(dim)),
            ("NUM_PARTS", Constant::U32(num_parts)),
            ("TWO_TENSORS", Constant::Bool(two_tensors)),
            ("SHARES", Constant::U32(shares)),
            ("ELEMENTS", Constant::U32(elements)),
        ],
        params: bytemuck::bytes_of(params).to_vec(),
        operands,
        grid: fold_grid(u64::from(params.num_elements.div_ceil(elements))),
        steps: 1,
    }
}

/// The tensors of a merge, contiguous f32: outputs `[rows, value_dim]`, log_sum_exps `[rows]`, where the rows are
/// those of `[batch, num_heads, q_len]`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionMergeBuffers<'a> {
    /// The results over some of the keys: output and `log_sum_exp`, read.
    pub first: (wgpu::BufferSlice<'a>, wgpu::BufferSlice<'a>),
    /// The results over the others, read.
    pub second: (wgpu::BufferSlice<'a>, wgpu::BufferSlice<'a>),
    /// Written.
    pub output: wgpu::BufferSlice<'a>,
    /// Written.
    pub log_sum_exp: wgpu::BufferSlice<'a>,
}

/// Two results of attention for the same queries over disjoint keys, merged into the one over all of them.
/// A sink belongs to one of the two.
///
/// Source: Dao et al. 2023, *Flash-Decoding*.
#[derive(Debug, Clone)]
pub struct AttentionMerge {
    context: Context,
    value_dim: u32,
}

impl AttentionMerge {
    /// Compiles the kernel for values of length `value_dim`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a length of 0, [`Error::Compile`].
    pub fn new(context: &Context, value_dim: u32) -> Result<Self, Error> {
        if value_dim == 0 {
            return Err(Error::shape("value_dim", 0, "at least 1"));
        }
        let merge = Self {
            context: context.clone(),
            value_dim,
        };
        context.compile_own(&merge.plan(1)?.dispatches)?;
        Ok(merge)
    }

    /// How a call for `rows` rows will run; pure.
    ///
    /// # Errors
    /// [`Error::Limit`] for more elements than 32 bits can number.
    pub fn plan(&self, rows: u64) -> Result<Plan, Error> {
        let elements = u128::from(rows) * u128::from(self.value_dim);
        check_elements(elements)?;
        let elements = elements as u64;
        if elements > 1 << 29 {
            return Err(Error::Limit {
                limit: "max_storage_buffer_binding_size",
                needed: 4 * elements,
                allowed: 1 << 31,
            });
        }
        let params = Params {
            num_rows: rows as u32,
            num_elements: elements as u32,
            num_heads: 1,
            q_len: rows.max(1) as u32,
            output_token: self.value_dim,
            write_log_sum_exp: 1,
            ..Default::default()
        };
        let output = |name| Operand::whole(name, 4 * elements);
        let sums = |name| Operand::whole(name, 4 * rows);
        let operands = vec![
            output("first output"),
            sums("first log_sum_exp"),
            output("second output"),
            sums("second log_sum_exp"),
            output("output"),
            sums("log_sum_exp"),
        ];
        let dispatches = match rows {
            0 => vec![],
            _ => vec![dispatch(&params, self.value_dim, 2, true, operands)],
        };
        Ok(Plan {
            variant: Variant::Portable,
            describe: "merge of two parts".into(),
            dispatches,
            scratch_size: 0,
            flops: 4.0 * elements as f64,
            bytes: 12.0 * (elements + rows) as f64,
        })
    }

    /// Binds the tensors of a call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan) and of [`Context::bind`].
    pub fn bind(&self, rows: u64, buffers: AttentionMergeBuffers<'_>) -> Result<Bound, Error> {
        let plan = self.plan(rows)?;
        let slices = [
            ("first output", buffers.first.0),
            ("first log_sum_exp", buffers.first.1),
            ("second output", buffers.second.0),
            ("second log_sum_exp", buffers.second.1),
            ("output", buffers.output),
            ("log_sum_exp", buffers.log_sum_exp),
        ];
        self.context.bind_own(&plan.dispatches, &slices)
    }
}
