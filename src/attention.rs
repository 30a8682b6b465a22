//! Scaled dot-product attention: `output = softmax(scale * query keyᵀ + mask) value`, fused.
//!
//! One pass over the keys; beyond the output, memory of `O(q_len)`.
//!
//! # Semantics
//! - Query head `h` reads key/value head `h / (num_heads / num_kv_heads)`.
//! - A score is `scale * query key`, then `softcap * tanh(score / softcap)`, then `+ bias`, then
//!   `- slope * |i + offset - j|` (ALiBi); then come the masks. A sink is one more score of each row, with
//!   no value.
//! - Query `i` may attend key `j` when `j <= i + offset` (causal), `j >= i + offset - window_left`,
//!   `j <= i + offset + window_right`, `j < kv_lengths[batch]`, the mask is true, and the bias is above -1e30.
//!   The offset is that of [`Causal`], 0 without a causal mask. With 2 queries and 5 keys, then 5 queries
//!   and 2 keys:
//!
//! ```text
//! top-left        bottom-right        top-left     bottom-right
//! 1 0 0 0 0       1 1 1 1 0           1 0          0 0
//! 1 1 0 0 0       1 1 1 1 1           1 1          0 0
//!                                     1 1          0 0
//!                                     1 1          1 0
//!                                     1 1          1 1
//! ```
//! - A row with nothing to attend has output 0, and `log_sum_exp` -infinity or its sink.
//! - Keys and values that a row may not attend do not reach its result, not even as NaN.
//! - Dropout keeps the weight of (batch, head, i, j) when word `j % 4` of
//!   `philox([j / 4, i, batch * num_heads + head, 0], seed)` is not below the probability
//!   ([`philox`](crate::philox)), and scales it by `1 / (1 - p)`; `log_sum_exp` is that before dropout.
//!
//! Source: Dao et al. 2022, *FlashAttention*; Rabe and Staats 2021; Milakov and Gimelshein 2018.

mod append;
mod backward;
mod gathered;
mod merge;
mod plan;
mod problem;
mod shape;
mod tensors;
mod tile;
mod weights;

pub use append::{
    AttentionAppend, AttentionAppendBuffers, AttentionAppendConfig, AttentionAppendShape,
};
pub use backward::{AttentionBackwardBuffers, AttentionBackwardGiven};
pub use merge::{AttentionMerge, AttentionMergeBuffers};
pub use shape::{AttentionShape, Axes, Causal, Layout, Packed, Paged};
pub use weights::{AttentionWeightsBuffers, Chosen};

use crate::{Bound, Context, ElementType, Error, Plan, Variant};

/// What is fixed when the kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Length of a query and of a key: 1 to 512.
    pub head_dim: u32,
    /// Length of a value, if it differs from `head_dim`: 1 to 512.
    pub value_dim: Option<u32>,
    /// How query, key and value are stored; sums, weights and outputs are f32.
    pub element: ElementType,
    /// The factor of the scores, if it is not `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// Which keys a query may attend.
    pub causal: Causal,
    /// How far before the diagonal a query may look.
    pub window_left: Option<u32>,
    /// How far behind the diagonal a query may look, where no causal mask forbids it.
    pub window_right: Option<u32>,
    /// Bounds the scores: `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// The probability with which a weight is dropped; the seed is the shape's.
    pub dropout: Option<f32>,
    /// Whether a bias is added to the scores, and how it is stored.
    pub bias: Option<ElementType>,
    /// Whether there is a boolean mask.
    pub mask: bool,
    /// Whether there are ALiBi slopes.
    pub alibi: bool,
    /// Whether there are sinks.
    pub sinks: bool,
    /// Forces a variant; otherwise the best that the device can run is taken.
    pub variant: Option<Variant>,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        Self {
            head_dim: 64,
            value_dim: None,
            element: ElementType::F32,
            scale: None,
            causal: Causal::No,
            window_left: None,
            window_right: None,
            softcap: None,
            dropout: None,
            bias: None,
            mask: false,
            alibi: false,
            sinks: false,
            variant: None,
        }
    }
}

impl AttentionConfig {
    /// `value_dim`, or what it defaults to.
    pub fn value_dim(&self) -> u32 {
        self.value_dim.unwrap_or(self.head_dim)
    }

    /// `scale`, or what it defaults to.
    pub fn scale(&self) -> f64 {
        self.scale
            .map_or_else(|| f64::from(self.head_dim).sqrt().recip(), f64::from)
    }

    /// Whether the keys of a query end, and whether they begin, elsewhere than those of its sequence.
    fn bounded(&self) -> [bool; 2] {
        let above = self.causal != Causal::No || self.window_right.is_some();
        [above, self.window_left.is_some()]
    }
}

/// The tensors of a call: query, key and value as [`AttentionConfig::element`] says, the others f32 or u32.
/// Those from `bias` to `sinks` are given exactly if configuration and shape say so.
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
    /// `[batch, num_heads, q_len]`, or of packed sequences `[num_heads, query_tokens]`; contiguous, written if
    /// given: the natural logarithm of the sum of the exponentials of a row's scores.
    pub log_sum_exp: Option<wgpu::BufferSlice<'a>>,
    /// `[batch, num_heads, q_len, kv_len]` or fewer axes ([`AttentionShape::bias_axes`]), contiguous, read.
    pub bias: Option<wgpu::BufferSlice<'a>>,
    /// Likewise, a byte per element, true where a query may attend; filled up to whole words.
    pub mask: Option<wgpu::BufferSlice<'a>>,
    /// `[batch]`, u32, read if given: how many keys each batch row has; all if absent.
    pub kv_lengths: Option<wgpu::BufferSlice<'a>>,
    /// `[num_heads]`, read.
    pub alibi_slopes: Option<wgpu::BufferSlice<'a>>,
    /// `[num_heads]`, read.
    pub sinks: Option<wgpu::BufferSlice<'a>>,
    /// `[batch + 1]` each, u32, read: where the queries and the keys of each packed sequence begin, and where
    /// the last ones end.
    pub cu_seqlens: Option<(wgpu::BufferSlice<'a>, wgpu::BufferSlice<'a>)>,
    /// `[batch, max_blocks]`, u32, read: the pages of each batch row, in order.
    pub block_table: Option<wgpu::BufferSlice<'a>>,
    /// [`Attention::scratch_size`] bytes of any content; may be absent if that is 0.
    pub scratch: Option<wgpu::BufferSlice<'a>>,
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
            bias: None,
            mask: None,
            kv_lengths: None,
            alibi_slopes: None,
            sinks: None,
            cu_seqlens: None,
            block_table: None,
            scratch: None,
        }
    }

    /// Asks for `log_sum_exp`.
    pub fn log_sum_exp(self, slice: wgpu::BufferSlice<'a>) -> Self {
        Self {
            log_sum_exp: Some(slice),
            ..self
        }
    }

    /// Those that the forward and the backward pass read alike.
    fn inputs(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let needed = [
            ("query", self.query),
            ("key", self.key),
            ("value", self.value),
        ];
        let optional = [
            ("bias", self.bias),
            ("mask", self.mask),
            ("kv_lengths", self.kv_lengths),
            ("alibi_slopes", self.alibi_slopes),
            ("sinks", self.sinks),
            ("cu_seqlens_q", self.cu_seqlens.map(|(q, _)| q)),
            ("cu_seqlens_k", self.cu_seqlens.map(|(_, k)| k)),
            ("block_table", self.block_table),
            ("scratch", self.scratch),
        ];
        let given = optional
            .into_iter()
            .filter_map(|(name, slice)| Some((name, slice?)));
        needed.into_iter().chain(given).collect()
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let mut slices = self.inputs();
        slices.push(("output", self.output));
        slices.extend(self.log_sum_exp.map(|slice| ("log_sum_exp", slice)));
        slices
    }

    fn given(&self) -> AttentionGiven {
        AttentionGiven {
            log_sum_exp: self.log_sum_exp.is_some(),
            kv_lengths: self.kv_lengths.is_some(),
        }
    }

    /// Whether the optional tensors are those that configuration and shape speak of.
    fn check(&self, config: &AttentionConfig, shape: &AttentionShape) -> Result<(), Error> {
        for (name, given, wanted) in [
            ("bias", self.bias.is_some(), config.bias.is_some()),
            ("mask", self.mask.is_some(), config.mask),
            ("alibi_slopes", self.alibi_slopes.is_some(), config.alibi),
            ("sinks", self.sinks.is_some(), config.sinks),
            (
                "cu_seqlens",
                self.cu_seqlens.is_some(),
                shape.packed.is_some(),
            ),
            (
                "block_table",
                self.block_table.is_some(),
                shape.paged.is_some(),
            ),
        ] {
            let problem = match (given, wanted) {
                (true, false) => "configuration and shape have no place for it",
                (false, true) => "is needed and missing",
                _ => continue,
            };
            return Err(Error::Operand { name, problem });
        }
        Ok(())
    }
}

/// Which of the tensors a call has that neither configuration nor shape tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttentionGiven {
    /// `log_sum_exp` is asked for.
    pub log_sum_exp: bool,
    /// There are lengths.
    pub kv_lengths: bool,
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
        let given = AttentionGiven::default();
        context.compile_own(&attention.plan(any_shape, given)?.dispatches)?;
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
    pub fn plan(&self, shape: AttentionShape, given: AttentionGiven) -> Result<Plan, Error> {
        self.config.plan(self.context.capabilities(), shape, given)
    }

    /// Bytes of scratch that [`bind`](Self::bind) needs at most for `shape`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a shape that has no meaning.
    pub fn scratch_size(&self, shape: AttentionShape) -> Result<u64, Error> {
        let given = AttentionGiven {
            log_sum_exp: true,
            kv_lengths: true,
        };
        Ok(self.plan(shape, given)?.scratch_size)
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
        buffers.check(&self.config, &shape)?;
        let plan = self.plan(shape, buffers.given())?;
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
