//! Keys and values of new tokens, appended to a cache on the device.

use std::borrow::Cow;

use super::tensors::Tensor;
use super::{Layout, Paged};
use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, fold_grid, params};
use crate::plan::check_elements;
use crate::{Bound, Capabilities, Context, ElementType, Error, Plan, Variant};

params! {
    struct Params {
        num_words: u32,
        words: u32,
        num_heads: u32,
        new_tokens: u32,
        capacity: u32,
        tokens_batch: u32,
        tokens_head: u32,
        tokens_token: u32,
        cache_batch: u32,
        cache_head: u32,
        cache_token: u32,
        page_size: u32,
        num_pages: u32,
        pages_row: u32,
    }
}

params! {
    struct LengthsParams {
        batch: u32,
        new_tokens: u32,
        capacity: u32,
    }
}

const APPEND: Kernel = Kernel {
    name: "attention_append",
    enables: &[],
    parts: Cow::Borrowed(&[COMMON, include_str!("../../shaders/attention_append.wgsl")]),
    params: Params::FIELDS,
    storage: &[Access::Read, Access::Read, Access::Read, Access::Write],
    stepped: false,
};

const LENGTHS: Kernel = Kernel {
    name: "attention_append_lengths",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        include_str!("../../shaders/attention_append_lengths.wgsl"),
    ]),
    params: LengthsParams::FIELDS,
    storage: &[Access::Write],
    stepped: false,
};

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionAppendConfig {
    /// Elements of a key. Even, if the cache is of halves: no two tokens share a word then.
    pub head_dim: u32,
    /// Elements of a value, if not `head_dim`; even likewise.
    pub value_dim: Option<u32>,
    /// How the cache is stored.
    pub element: ElementType,
    /// How the new tokens are stored: as the cache is, or f32, which is rounded to the nearest.
    pub tokens: ElementType,
}

/// What varies per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionAppendShape {
    /// Rows of the cache, each with a length of its own.
    pub batch: u32,
    /// Heads of keys and values.
    pub num_kv_heads: u32,
    /// New tokens of each row.
    pub new_tokens: u32,
    /// Tokens that a row of the cache has room for: the `kv_len` of the attention that reads it. Of a paged cache
    /// `block_size * max_blocks`, whatever is said here.
    pub capacity: u32,
    /// Of the cache: `[batch, num_kv_heads, capacity, dim]` or another order; of its pages if it is `paged`.
    pub cache_layout: Layout,
    /// Of the new tokens: `[batch, num_kv_heads, new_tokens, dim]` or another order.
    pub tokens_layout: Layout,
    /// A cache in pages, which needs `block_table`.
    pub paged: Option<Paged>,
}

/// The tensors of a call.
#[derive(Debug, Clone, Copy)]
pub struct AttentionAppendBuffers<'a> {
    /// Keys of the new tokens, read.
    pub key: wgpu::BufferSlice<'a>,
    /// Values of the new tokens, read.
    pub value: wgpu::BufferSlice<'a>,
    /// Written where the new keys go, otherwise untouched.
    pub key_cache: wgpu::BufferSlice<'a>,
    /// Written where the new values go, otherwise untouched.
    pub value_cache: wgpu::BufferSlice<'a>,
    /// `[batch]`, u32: how many tokens each row of the cache holds; read, and written by the last dispatch: grown by
    /// `new_tokens`, up to the capacity.
    pub kv_lengths: wgpu::BufferSlice<'a>,
    /// `[batch, max_blocks]`, u32, read: the pages of each row, in order. Pages that are written belong to one row.
    pub block_table: Option<wgpu::BufferSlice<'a>>,
}

/// Appends the keys and values of new tokens to a cache that [`Attention`](crate::Attention) reads, and counts them
/// in `kv_lengths`, so that a loop which decodes need not know the lengths.
///
/// Tokens for which a row has no room, or a page number without a page, are dropped; nothing is written outside.
///
/// ```no_run
/// use gatefold::{
///     AttentionAppend, AttentionAppendBuffers, AttentionAppendConfig, AttentionAppendShape, Context, ElementType,
///     Layout, wgpu,
/// };
///
/// # fn decode(context: &Context, pass: &mut wgpu::ComputePass<'_>, b: [&wgpu::Buffer; 5]) -> Result<(), gatefold::Error> {
/// let append = AttentionAppend::new(context, AttentionAppendConfig {
///     head_dim: 64,
///     value_dim: None,
///     element: ElementType::F16,
///     tokens: ElementType::F32,
/// })?;
/// let shape = AttentionAppendShape {
///     batch: 1,
///     num_kv_heads: 8,
///     new_tokens: 1,
///     capacity: 4096,
///     cache_layout: Layout::Bhsd,
///     tokens_layout: Layout::Bhsd,
///     paged: None,
/// };
/// let bound = append.bind(shape, AttentionAppendBuffers {
///     key: b[0].slice(..),
///     value: b[1].slice(..),
///     key_cache: b[2].slice(..),
///     value_cache: b[3].slice(..),
///     kv_lengths: b[4].slice(..),
///     block_table: None,
/// })?;
/// bound.record(pass); // in front of the attention that reads the cache and kv_lengths
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AttentionAppend {
    context: Context,
    config: AttentionAppendConfig,
}

impl AttentionAppendConfig {
    fn value_dim(&self) -> u32 {
        self.value_dim.unwrap_or(self.head_dim)
    }

    fn check(&self) -> Result<(), Error> {
        for (name, dim) in [("head_dim", self.head_dim), ("value_dim", self.value_dim())] {
            if dim == 0 {
                return Err(Error::shape(name, dim, "at least 1"));
            }
            if self.element != ElementType::F32 && dim % 2 != 0 {
                let expected = "an even number, for a cache of halves";
                return Err(Error::shape(name, dim, expected));
            }
        }
        if self.tokens != self.element && self.tokens != ElementType::F32 {
            return Err(Error::Operand {
                name: "tokens",
                problem: "are stored neither as the cache is nor as f32",
            });
        }
        Ok(())
    }

    /// How a call runs on a device with `capabilities`; pure.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Operand`] for types or strides that do not go together; [`Error::Limit`] for a tensor
    /// that is larger than a binding.
    pub fn plan(
        &self,
        capabilities: &Capabilities,
        shape: AttentionAppendShape,
    ) -> Result<Plan, Error> {
        self.check()?;
        let AttentionAppendShape {
            batch, new_tokens, ..
        } = shape;
        let rows = shape.paged.map_or(batch, |paged| paged.num_blocks);
        let capacity = match shape.paged {
            Some(paged) => paged.block_size.checked_mul(paged.max_blocks),
            None => Some(shape.capacity),
        };
        let capacity = capacity.unwrap_or(u32::MAX);
        let mut dispatches = Vec::new();
        let mut bytes = 0;
        let names = [
            ("key", "key_cache", self.head_dim),
            ("value", "value_cache", self.value_dim()),
        ];
        for (name, cache_name, dim) in names {
            let tokens = self.tensor(name, self.tokens, shape.tokens_layout, &shape, dim)?;
            let cache = self.tensor(cache_name, self.element, shape.cache_layout, &shape, dim)?;
            let heads = 0..shape.num_kv_heads.into();
            if batch == 0 || rows == 0 || new_tokens == 0 || capacity == 0 || heads.end == 0 {
                continue;
            }
            let tokens_span = tokens.span(&(0..batch.into()), &heads);
            let cache_span = cache.span(&(0..rows.into()), &heads);
            for (span, element) in [(&tokens_span, self.tokens), (&cache_span, self.element)] {
                check_elements(span.end.into())?;
                let needed = span.end * element.size();
                if needed > capabilities.storage_binding_size {
                    return Err(Error::Limit {
                        limit: "max_storage_buffer_binding_size",
                        needed,
                        allowed: capabilities.storage_binding_size,
                    });
                }
            }
            let [of_tokens, of_cache] =
                [self.tokens, self.element].map(|element| 4 / element.size());
            let word = |elements: u64, of: u64| (elements / of) as u32;
            let words = word(dim.into(), of_cache);
            let paged = shape.paged.unwrap_or_default();
            let num_words = u64::from(batch) * heads.end * u64::from(new_tokens) * u64::from(words);
            let params = Params {
                num_words: num_words as u32,
                words,
                num_heads: shape.num_kv_heads,
                new_tokens,
                capacity,
                tokens_batch: word(tokens.batch, of_tokens),
                tokens_head: word(tokens.head, of_tokens),
                tokens_token: word(tokens.token, of_tokens),
                cache_batch: word(cache.batch, of_cache),
                cache_head: word(cache.head, of_cache),
                cache_token: word(cache.token, of_cache),
                page_size: paged.block_size,
                num_pages: paged.num_blocks,
                pages_row: paged.max_blocks,
            };
            let convert = match (self.tokens, self.element) {
                (ElementType::F32, ElementType::F16) => 1,
                (ElementType::F32, ElementType::Bf16) => 2,
                _ => 0,
            };
            let table = 4 * u64::from(batch) * u64::from(paged.max_blocks);
            dispatches.push(Dispatch {
                kernel: APPEND,
                constants: vec![
                    ("PAGED", Constant::Bool(shape.paged.is_some())),
                    ("CONVERT", Constant::U32(convert)),
                ],
                params: bytemuck::bytes_of(&params).to_vec(),
                operands: vec![
                    Operand::typed(name, 0..tokens_span.end, self.tokens).0,
                    Operand::whole("kv_lengths", 4 * u64::from(batch)),
                    match shape.paged {
                        Some(_) => Operand::whole("block_table", table),
                        None => Operand::Unused,
                    },
                    Operand::typed(cache_name, 0..cache_span.end, self.element).0,
                ],
                grid: fold_grid(num_words.div_ceil(64)),
                steps: 1,
            });
            bytes += 4 * num_words * (1 + of_cache / of_tokens);
        }
        if !dispatches.is_empty() {
            let params = LengthsParams {
                batch,
                new_tokens,
                capacity,
            };
            dispatches.push(Dispatch {
                kernel: LENGTHS,
                constants: vec![],
                params: bytemuck::bytes_of(&params).to_vec(),
                operands: vec![Operand::whole("kv_lengths", 4 * u64::from(batch))],
                grid: [batch.div_ceil(64), 1, 1],
                steps: 1,
            });
        }
        Ok(Plan {
            variant: Variant::Portable,
            describe: "a word per invocation".into(),
            dispatches,
            scratch_size: 0,
            flops: 0.0,
            bytes: bytes as f64,
        })
    }

    fn tensor(
        &self,
        name: &'static str,
        element: ElementType,
        layout: Layout,
        shape: &AttentionAppendShape,
        dim: u32,
    ) -> Result<Tensor, Error> {
        let len = match (name, shape.paged) {
            ("key" | "value", _) => shape.new_tokens,
            (_, Some(paged)) => paged.block_size,
            (_, None) => shape.capacity,
        };
        let tensor = Tensor::new(name, element, layout, shape.num_kv_heads, len, dim);
        let strides = [tensor.batch, tensor.head, tensor.token];
        if element != ElementType::F32 && strides.iter().any(|stride| stride % 2 != 0) {
            return Err(Error::Operand {
                name,
                problem: "has odd strides, where two tokens of halves would share a word",
            });
        }
        Ok(tensor)
    }
}

impl AttentionAppend {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Compile`].
    pub fn new(context: &Context, config: AttentionAppendConfig) -> Result<Self, Error> {
        let shape = AttentionAppendShape {
            batch: 1,
            num_kv_heads: 1,
            new_tokens: 1,
            capacity: 1,
            cache_layout: Layout::Bhsd,
            tokens_layout: Layout::Bhsd,
            paged: None,
        };
        let plan = config.plan(context.capabilities(), shape)?;
        context.compile_own(&plan.dispatches)?;
        Ok(Self {
            context: context.clone(),
            config,
        })
    }

    /// How a call will run; pure.
    ///
    /// # Errors
    /// Those of [`AttentionAppendConfig::plan`].
    pub fn plan(&self, shape: AttentionAppendShape) -> Result<Plan, Error> {
        self.config.plan(self.context.capabilities(), shape)
    }

    /// Binds the tensors of a call, which can then be recorded as often as wanted: each time behind what is there.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan) and of [`Context::bind`]; [`Error::Operand`] for pages without a `block_table`.
    pub fn bind(
        &self,
        shape: AttentionAppendShape,
        buffers: AttentionAppendBuffers<'_>,
    ) -> Result<Bound, Error> {
        let plan = self.plan(shape)?;
        if shape.paged.is_some() != buffers.block_table.is_some() {
            return Err(Error::Operand {
                name: "block_table",
                problem: match shape.paged {
                    Some(_) => "a cache in pages needs it",
                    None => "only a cache in pages has it",
                },
            });
        }
        let mut slices = vec![
            ("key", buffers.key),
            ("value", buffers.value),
            ("key_cache", buffers.key_cache),
            ("value_cache", buffers.value_cache),
            ("kv_lengths", buffers.kv_lengths),
        ];
        slices.extend(buffers.block_table.map(|table| ("block_table", table)));
        self.context.bind_own(&plan.dispatches, &slices)
    }
}
