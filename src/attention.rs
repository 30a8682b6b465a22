//! Scaled dot-product attention: `output = softmax(scale * query keyᵀ + mask) value`, fused.
//!
//! One pass over the keys; beyond the output, memory of `O(q_len)`.
//!
//! # Semantics
//! - Query head `h` reads key/value head `h / (num_heads / num_kv_heads)`.
//! - Under a causal mask query `i` may attend key `j` when `j <= i + offset` ([`Causal`]). With 2 queries
//!   and 5 keys, then 5 queries and 2 keys:
//!
//! ```text
//! top-left        bottom-right        top-left     bottom-right
//! 1 0 0 0 0       1 1 1 1 0           1 0          0 0
//! 1 1 0 0 0       1 1 1 1 1           1 1          0 0
//!                                     1 1          0 0
//!                                     1 1          1 0
//!                                     1 1          1 1
//! ```
//! - A row with nothing to attend has output 0 and `log_sum_exp` -infinity.
//! - Keys and values that a row may not attend do not reach its result, not even as NaN.
//!
//! Source: Dao et al. 2022, *FlashAttention*; Rabe and Staats 2021; Milakov and Gimelshein 2018.

mod plan;
mod tensors;
mod tile;

use crate::{Bound, Context, Error, Plan, Variant};

/// What is fixed when the kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Length of a query and of a key: 1 to 256.
    pub head_dim: u32,
    /// Length of a value, if it differs from `head_dim`: 1 to 256.
    pub value_dim: Option<u32>,
    /// The factor of the scores, if it is not `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// Which keys a query may attend.
    pub causal: Causal,
    /// Forces a variant; otherwise the best that the device can run is taken.
    pub variant: Option<Variant>,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        Self {
            head_dim: 64,
            value_dim: None,
            scale: None,
            causal: Causal::No,
            variant: None,
        }
    }
}

/// Where the diagonal of the causal mask lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Causal {
    /// No mask: every query attends every key.
    #[default]
    No,
    /// Query 0 attends key 0: offset 0.
    TopLeft,
    /// The last query attends the last key: offset `kv_len - q_len`.
    BottomRight,
    /// Query `i` attends keys up to `i + offset`, which may be negative.
    Offset(i32),
}

impl Causal {
    /// `offset` in `j <= i + offset`; `None` without a mask.
    pub fn offset(self, q_len: u32, kv_len: u32) -> Option<i64> {
        match self {
            Self::No => None,
            Self::TopLeft => Some(0),
            Self::BottomRight => Some(i64::from(kv_len) - i64::from(q_len)),
            Self::Offset(offset) => Some(i64::from(offset)),
        }
    }
}

/// The order of a tensor's axes in memory. The last, the head dimension, is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// `[batch, num_heads, seq_len, head_dim]`
    #[default]
    Bhsd,
    /// `[batch, seq_len, num_heads, head_dim]`
    Bshd,
    /// Any other, by its strides in elements; for instance a slice of a packed QKV tensor.
    Strides {
        /// From one row of the batch to the next.
        batch: u32,
        /// From one head to the next.
        head: u32,
        /// From one token to the next.
        token: u32,
    },
}

/// What varies per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Independent problems.
    pub batch: u32,
    /// Query heads.
    pub num_heads: u32,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: u32,
    /// Queries per head.
    pub q_len: u32,
    /// Keys and values per head.
    pub kv_len: u32,
    /// Of `query`.
    pub query_layout: Layout,
    /// Of `key`.
    pub key_layout: Layout,
    /// Of `value`.
    pub value_layout: Layout,
    /// Of `output`.
    pub output_layout: Layout,
}

impl AttentionShape {
    /// Contiguous tensors `[batch, heads, seq_len, head_dim]`.
    pub fn new(batch: u32, num_heads: u32, num_kv_heads: u32, q_len: u32, kv_len: u32) -> Self {
        let layout = Layout::Bhsd;
        Self {
            batch,
            num_heads,
            num_kv_heads,
            q_len,
            kv_len,
            query_layout: layout,
            key_layout: layout,
            value_layout: layout,
            output_layout: layout,
        }
    }

    /// The same shape with all four tensors in `layout`.
    pub fn with_layout(self, layout: Layout) -> Self {
        Self {
            query_layout: layout,
            key_layout: layout,
            value_layout: layout,
            output_layout: layout,
            ..self
        }
    }
}

/// The tensors of a call, f32.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBuffers<'a> {
    /// `[batch, num_heads, q_len, head_dim]`, read.
    pub query: wgpu::BufferSlice<'a>,
    /// `[batch, num_kv_heads, kv_len, head_dim]`, read.
    pub key: wgpu::BufferSlice<'a>,
    /// `[batch, num_kv_heads, kv_len, value_dim]`, read.
    pub value: wgpu::BufferSlice<'a>,
    /// `[batch, num_heads, q_len, value_dim]`, written.
    pub output: wgpu::BufferSlice<'a>,
    /// `[batch, num_heads, q_len]`, contiguous, written if given: the natural logarithm of the sum of the
    /// exponentials of a row's scores.
    pub log_sum_exp: Option<wgpu::BufferSlice<'a>>,
}

impl<'a> AttentionBuffers<'a> {
    /// The four that every call needs.
    pub fn new(
        query: wgpu::BufferSlice<'a>,
        key: wgpu::BufferSlice<'a>,
        value: wgpu::BufferSlice<'a>,
        output: wgpu::BufferSlice<'a>,
    ) -> Self {
        Self {
            query,
            key,
            value,
            output,
            log_sum_exp: None,
        }
    }

    /// Asks for `log_sum_exp`.
    pub fn log_sum_exp(self, slice: wgpu::BufferSlice<'a>) -> Self {
        Self {
            log_sum_exp: Some(slice),
            ..self
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let mut slices = vec![
            ("query", self.query),
            ("key", self.key),
            ("value", self.value),
            ("output", self.output),
        ];
        slices.extend(self.log_sum_exp.map(|slice| ("log_sum_exp", slice)));
        slices
    }
}

/// Attention, compiled for one configuration.
#[derive(Debug, Clone)]
pub struct Attention {
    context: Context,
    config: AttentionConfig,
}

impl Attention {
    /// Compiles the kernels of `config`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a head dimension out of range, [`Error::Feature`] for a forced variant that the
    /// device cannot run, [`Error::Compile`].
    pub fn new(context: &Context, config: AttentionConfig) -> Result<Self, Error> {
        let attention = Self {
            context: context.clone(),
            config,
        };
        let any_shape = AttentionShape::new(1, 1, 1, 1, 1);
        context.compile_own(&attention.plan(any_shape, true)?.dispatches)?;
        Ok(attention)
    }

    /// What it was compiled for.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// How a call will run; pure.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), as far as they do not depend on the buffers.
    pub fn plan(&self, shape: AttentionShape, log_sum_exp: bool) -> Result<Plan, Error> {
        self.config
            .plan(self.context.capabilities(), shape, log_sum_exp)
    }

    /// Bytes of scratch that [`bind`](Self::bind) needs for `shape`: none, so far.
    ///
    /// # Errors
    /// [`Error::Shape`] for a shape that has no meaning.
    pub fn scratch_size(&self, shape: AttentionShape) -> Result<u64, Error> {
        Ok(self.plan(shape, false)?.scratch_size)
    }

    /// Binds the tensors of a call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Buffer`], [`Error::Operand`], [`Error::Aliased`], [`Error::Limit`]: see there.
    pub fn bind(
        &self,
        shape: AttentionShape,
        buffers: AttentionBuffers<'_>,
    ) -> Result<Bound, Error> {
        let plan = self.plan(shape, buffers.log_sum_exp.is_some())?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }

    /// [`bind`](Self::bind) and [`Bound::record`] in one.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        shape: AttentionShape,
        buffers: AttentionBuffers<'_>,
    ) -> Result<(), Error> {
        self.bind(shape, buffers)?.record(pass);
        Ok(())
    }
}
