//! Additive (Bahdanau) attention: `output = softmax(score) value` with
//! `score_ij = sum_d v_d tanh(query_id + key_jd)`, fused, forward and backward.
//!
//! One pass over the keys; beyond inputs and outputs, memory of `O(q_len + kv_len)`. Query and key are already
//! projected.
//!
//! # Semantics
//! - A mask says which keys a query may attend, `kv_lengths` how many keys of a batch row there are.
//! - A row with nothing to attend has output 0, weights 0, gradients 0 and `log_sum_exp` -infinity.
//! - Keys and values that a row may not attend do not reach its result or any gradient, not even as NaN.
//! - Same device, same inputs: same bits.
//!
//! Source: Bahdanau, Cho and Bengio 2015, *Neural machine translation by jointly learning to align and
//! translate*; Luong et al. 2015 (*concat*). The kernels: Milakov and Gimelshein 2018; Dao et al. 2022.

mod backward;
mod plan;
mod tile;

pub use backward::AdditiveAttentionBackwardBuffers;

use crate::{Bound, Context, ElementType, Error, Plan, Variant};

/// What is fixed when the kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdditiveAttentionConfig {
    /// Length of a projected query and key, and of `v`: at least 1.
    pub dim: u32,
    /// Length of a value, if it differs from `dim`: at least 1.
    pub value_dim: Option<u32>,
    /// How query, key and value are stored. All else is f32.
    pub element: ElementType,
    /// Forces a variant; otherwise the best that the device can run is taken.
    pub variant: Option<Variant>,
}

impl Default for AdditiveAttentionConfig {
    fn default() -> Self {
        Self {
            dim: 128,
            value_dim: None,
            element: ElementType::F32,
            variant: None,
        }
    }
}

impl AdditiveAttentionConfig {
    /// Length of a value.
    pub fn value_dim(&self) -> u32 {
        self.value_dim.unwrap_or(self.dim)
    }
}

/// The axes that a mask has at their full length; along the others it has length 1 and is broadcast.
///
/// A byte per element, not 0 where a query may attend a key: PyTorch's bool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdditiveAttentionMask {
    /// One mask per batch row.
    pub batch: bool,
    /// One mask per query.
    pub query: bool,
    /// One element per key.
    pub key: bool,
}

impl AdditiveAttentionMask {
    /// `[batch, q_len, kv_len]`
    pub const FULL: Self = Self {
        batch: true,
        query: true,
        key: true,
    };

    /// Its extents under `shape`; each is 1 where it is broadcast.
    pub fn extents(self, shape: &AdditiveAttentionShape) -> [u32; 3] {
        let extent = |full, len| if full { len } else { 1 };
        [
            extent(self.batch, shape.batch),
            extent(self.query, shape.q_len),
            extent(self.key, shape.kv_len),
        ]
    }
}

/// What varies per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdditiveAttentionShape {
    /// Independent problems.
    pub batch: u32,
    /// Queries of each.
    pub q_len: u32,
    /// Keys and values of each.
    pub kv_len: u32,
    /// The mask, if there is one.
    pub mask: Option<AdditiveAttentionMask>,
    /// Whether each batch row has a number of keys of its own.
    pub kv_lengths: bool,
}

impl AdditiveAttentionShape {
    /// Every query attends every key.
    pub fn new(batch: u32, q_len: u32, kv_len: u32) -> Self {
        Self {
            batch,
            q_len,
            kv_len,
            mask: None,
            kv_lengths: false,
        }
    }

    /// With a mask.
    pub fn with_mask(self, mask: AdditiveAttentionMask) -> Self {
        Self {
            mask: Some(mask),
            ..self
        }
    }

    /// With a number of keys for each batch row.
    pub fn with_kv_lengths(self) -> Self {
        Self {
            kv_lengths: true,
            ..self
        }
    }
}

/// The tensors of a call, contiguous. `T` is the configuration's [`ElementType`].
#[derive(Debug, Clone, Copy)]
pub struct AdditiveAttentionBuffers<'a> {
    /// `[batch, q_len, dim]` of `T`, read.
    pub query: wgpu::BufferSlice<'a>,
    /// `[batch, kv_len, dim]` of `T`, read.
    pub key: wgpu::BufferSlice<'a>,
    /// `[batch, kv_len, value_dim]` of `T`, read.
    pub value: wgpu::BufferSlice<'a>,
    /// `[dim]` f32, read.
    pub v: wgpu::BufferSlice<'a>,
    /// One byte per element, the last word filled up; read; exactly if the shape says so.
    pub mask: Option<wgpu::BufferSlice<'a>>,
    /// `[batch]` i32, read, brought into `0..=kv_len`; exactly if the shape says so.
    pub kv_lengths: Option<wgpu::BufferSlice<'a>>,
    /// `[batch, q_len, value_dim]` f32, written.
    pub output: wgpu::BufferSlice<'a>,
    /// `[batch, q_len]` f32, written if given: the natural logarithm of the sum of the exponentials of a row's scores.
    pub log_sum_exp: Option<wgpu::BufferSlice<'a>>,
    /// `[batch, q_len, kv_len]` f32, written if given, by a second pass that needs `log_sum_exp`.
    pub weights: Option<wgpu::BufferSlice<'a>>,
}

impl<'a> AdditiveAttentionBuffers<'a> {
    /// The five that every call needs.
    pub fn new(
        query: wgpu::BufferSlice<'a>,
        key: wgpu::BufferSlice<'a>,
        value: wgpu::BufferSlice<'a>,
        v: wgpu::BufferSlice<'a>,
        output: wgpu::BufferSlice<'a>,
    ) -> Self {
        Self {
            query,
            key,
            value,
            v,
            mask: None,
            kv_lengths: None,
            output,
            log_sum_exp: None,
            weights: None,
        }
    }

    /// Gives the mask.
    pub fn mask(self, slice: wgpu::BufferSlice<'a>) -> Self {
        Self {
            mask: Some(slice),
            ..self
        }
    }

    /// Gives the number of keys of each batch row.
    pub fn kv_lengths(self, slice: wgpu::BufferSlice<'a>) -> Self {
        Self {
            kv_lengths: Some(slice),
            ..self
        }
    }

    /// Asks for `log_sum_exp`.
    pub fn log_sum_exp(self, slice: wgpu::BufferSlice<'a>) -> Self {
        Self {
            log_sum_exp: Some(slice),
            ..self
        }
    }

    /// Asks for the softmax's weights.
    pub fn weights(self, slice: wgpu::BufferSlice<'a>) -> Self {
        Self {
            weights: Some(slice),
            ..self
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let mut slices = vec![
            ("query", self.query),
            ("key", self.key),
            ("value", self.value),
            ("v", self.v),
            ("output", self.output),
        ];
        slices.extend(self.mask.map(|slice| ("mask", slice)));
        slices.extend(self.kv_lengths.map(|slice| ("kv_lengths", slice)));
        slices.extend(self.log_sum_exp.map(|slice| ("log_sum_exp", slice)));
        slices.extend(self.weights.map(|slice| ("weights", slice)));
        slices
    }
}

/// Additive attention, compiled for one configuration.
#[derive(Debug, Clone)]
pub struct AdditiveAttention {
    context: Context,
    config: AdditiveAttentionConfig,
}

impl AdditiveAttention {
    /// Compiles the forward kernel of `config` without a mask; what else a call needs is compiled when it is
    /// bound first.
    ///
    /// # Errors
    /// [`Error::Shape`] for a dimension of 0, [`Error::Feature`] for a forced variant that the device cannot
    /// run, [`Error::Compile`].
    pub fn new(context: &Context, config: AdditiveAttentionConfig) -> Result<Self, Error> {
        let op = Self {
            context: context.clone(),
            config,
        };
        let any_shape = AdditiveAttentionShape::new(1, 1, 1);
        context.compile_own(&op.plan(any_shape, true, false)?.dispatches)?;
        Ok(op)
    }

    /// What it was compiled for.
    pub fn config(&self) -> &AdditiveAttentionConfig {
        &self.config
    }

    /// How a call will run; pure.
    ///
    /// # Errors
    /// As [`AdditiveAttentionConfig::plan`].
    pub fn plan(
        &self,
        shape: AdditiveAttentionShape,
        log_sum_exp: bool,
        weights: bool,
    ) -> Result<Plan, Error> {
        self.config
            .plan(self.context.capabilities(), shape, log_sum_exp, weights)
    }

    /// Bytes of scratch that [`bind`](Self::bind) needs for `shape`: none.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`].
    pub fn scratch_size(&self, shape: AdditiveAttentionShape) -> Result<u64, Error> {
        Ok(self.plan(shape, false, false)?.scratch_size)
    }

    /// Binds the tensors of a call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Buffer`], [`Error::Operand`], [`Error::Aliased`], [`Error::Limit`]: see there.
    pub fn bind(
        &self,
        shape: AdditiveAttentionShape,
        buffers: AdditiveAttentionBuffers<'_>,
    ) -> Result<Bound, Error> {
        check_given("mask", shape.mask.is_some(), buffers.mask)?;
        check_given("kv_lengths", shape.kv_lengths, buffers.kv_lengths)?;
        let (log_sum_exp, weights) = (buffers.log_sum_exp.is_some(), buffers.weights.is_some());
        let plan = self.plan(shape, log_sum_exp, weights)?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }

    /// [`bind`](Self::bind) and [`Bound::record`] in one.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        shape: AdditiveAttentionShape,
        buffers: AdditiveAttentionBuffers<'_>,
    ) -> Result<(), Error> {
        self.bind(shape, buffers)?.record(pass);
        Ok(())
    }
}

/// Whether a tensor is there exactly if the shape has it.
fn check_given(
    name: &'static str,
    wanted: bool,
    slice: Option<wgpu::BufferSlice<'_>>,
) -> Result<(), Error> {
    let problem = match (wanted, slice) {
        (true, None) => "is needed and missing",
        (false, Some(_)) => "the shape has none",
        _ => return Ok(()),
    };
    Err(Error::Operand { name, problem })
}
