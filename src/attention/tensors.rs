//! Where the tensors of a call lie, and how they are cut to fit a device's bindings.

use std::ops::Range;

use super::{AttentionConfig, AttentionShape, Axes, Layout};
use crate::kernel::Operand;
use crate::plan::{check_dispatches, check_elements};
use crate::{ElementType, Error};

/// Strides and lengths of one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor {
    pub name: &'static str,
    pub element: ElementType,
    pub batch: u64,
    pub head: u64,
    pub token: u64,
    len: u64,
    dim: u64,
}

impl Tensor {
    pub fn new(
        name: &'static str,
        element: ElementType,
        layout: Layout,
        heads: u32,
        len: u32,
        dim: u32,
    ) -> Self {
        let [heads, len, dim] = [heads, len, dim].map(u64::from);
        // of a contiguous tensor that is too large for 64 bits, `check_addressable` sees the largest number
        let all = heads.saturating_mul(len * dim);
        let (batch, head, token) = match layout {
            Layout::Bhsd => (all, len * dim, dim),
            Layout::Bshd => (all, dim, heads * dim),
            Layout::Strides { batch, head, token } => (batch.into(), head.into(), token.into()),
        };
        Self {
            name,
            element,
            batch,
            head,
            token,
            len,
            dim,
        }
    }

    /// `[batch, heads, rows, kv_len]`, contiguous.
    pub fn weights(heads: u32, rows: u32, kv_len: u32) -> Self {
        Self::new(
            "weights",
            ElementType::F32,
            Layout::Bhsd,
            heads,
            rows,
            kv_len,
        )
    }

    /// Another tensor of the same shape and strides, f32.
    pub fn gradient(self, name: &'static str) -> Self {
        Self {
            name,
            element: ElementType::F32,
            ..self
        }
    }

    /// One tensor that all batch rows share, at places of their own that only the device knows.
    fn shared(self) -> Self {
        Self { batch: 0, ..self }
    }

    /// Of a bias or mask: `[batch, num_heads, q_len, kv_len]` without the axes that it lacks.
    fn broadcast(
        name: &'static str,
        element: ElementType,
        axes: Axes,
        shape: &AttentionShape,
    ) -> Self {
        let has = |axis: bool, len: u32| if axis { u64::from(len) } else { 1 };
        let dim = has(axes.key, shape.kv_len);
        let len = has(axes.query, shape.q_len);
        let heads = has(axes.head, shape.num_heads);
        let stride = |axis: bool, stride: u64| if axis { stride } else { 0 };
        Self {
            name,
            element,
            batch: stride(axes.batch, heads.saturating_mul(len * dim)),
            head: stride(axes.head, len * dim),
            token: stride(axes.query, dim),
            len,
            dim,
        }
    }

    /// Whether 64 bits can number its bytes, with room for sums.
    fn check_addressable(&self, batch: u64, heads: u64) -> Result<(), Error> {
        let axes = [
            (self.batch, batch),
            (self.head, heads),
            (self.token, self.len),
        ];
        let reach = |(stride, len)| u128::from(stride) * u128::from(u64::max(len, 1));
        let elements: u128 = axes.into_iter().map(reach).sum();
        check_elements(elements)
    }

    /// The elements of `heads` of `batches`, from the first to the last.
    pub fn span(&self, batches: &Range<u64>, heads: &Range<u64>) -> Range<u64> {
        if self.len == 0 || self.dim == 0 {
            return 0..0;
        }
        let first = batches.start * self.batch + heads.start * self.head;
        let last = (batches.end - 1) * self.batch
            + (heads.end - 1) * self.head
            + (self.len - 1) * self.token;
        first..last + self.dim
    }

    /// The span as a binding, and the element in it at which `heads` of `batches` begin.
    pub fn operand(&self, batches: &Range<u64>, heads: &Range<u64>) -> (Operand, u32) {
        match self.span(batches, heads) {
            span if span.is_empty() => (Operand::Unused, 0),
            span => Operand::typed(self.name, span, self.element),
        }
    }

    /// Whether all rows lie at multiples of four elements, from a window's start on too, and are whole fours.
    pub fn is_aligned(&self) -> bool {
        let all = [self.batch, self.head, self.token, self.dim];
        all.iter().all(|stride| stride.is_multiple_of(4))
    }

    /// Whether no element has two indices: rows of different tokens, heads or batch rows stay apart.
    fn is_injective(&self, batch: u64, heads: u64) -> bool {
        if self.len == 0 {
            return true;
        }
        let mut axes = [
            (self.token, self.len),
            (self.head, heads),
            (self.batch, batch),
        ];
        axes.sort_unstable();
        let mut span = self.dim;
        axes.iter()
            .filter(|(_, len)| *len > 1)
            .all(|&(stride, len)| {
                let apart = stride >= span;
                span += stride * (len - 1);
                apart
            })
    }
}

/// The batch rows and key/value heads of one dispatch.
pub(super) type Chunk = (Range<u64>, Range<u64>);

/// The tensors of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensors {
    pub query: Tensor,
    pub key: Tensor,
    pub value: Tensor,
    pub output: Tensor,
    pub log_sum_exp: Tensor,
    pub bias: Option<Tensor>,
    /// How many batch rows query and output, and how many key and value have in memory.
    batches: [u64; 2],
}

impl Tensors {
    pub fn new(config: &AttentionConfig, shape: &AttentionShape) -> Self {
        let AttentionShape {
            batch,
            num_heads,
            num_kv_heads,
            q_len,
            kv_len,
            ..
        } = *shape;
        let value_dim = config.value_dim();
        let [q_tokens, kv_tokens] = match (shape.packed, shape.paged) {
            (Some(packed), _) => [packed.query_tokens, packed.key_tokens],
            (None, Some(paged)) => [q_len, paged.block_size],
            (None, None) => [q_len, kv_len],
        };
        let q = |name, element, layout, dim| {
            let tensor = Tensor::new(name, element, layout, num_heads, q_tokens, dim);
            match shape.packed {
                Some(_) => tensor.shared(),
                None => tensor,
            }
        };
        let kv = |name, layout, dim| {
            let tensor = Tensor::new(name, config.element, layout, num_kv_heads, kv_tokens, dim);
            match shape.packed {
                Some(_) => tensor.shared(),
                None => tensor,
            }
        };
        let own = |many: u32| {
            if shape.packed.is_some() {
                1
            } else {
                many.into()
            }
        };
        let bias = config
            .bias
            .map(|element| Tensor::broadcast("bias", element, shape.bias_axes, shape));
        Self {
            query: q("query", config.element, shape.query_layout, config.head_dim),
            key: kv("key", shape.key_layout, config.head_dim),
            value: kv("value", shape.value_layout, value_dim),
            output: q("output", ElementType::F32, shape.output_layout, value_dim),
            log_sum_exp: q("log_sum_exp", ElementType::F32, Layout::Bhsd, 1),
            bias,
            batches: [
                own(batch),
                shape
                    .paged
                    .map_or_else(|| own(batch), |paged| paged.num_blocks.into()),
            ],
        }
    }

    pub fn check(&self, shape: &AttentionShape) -> Result<(), Error> {
        let [q_batches, kv_batches] = self.batches;
        let heads = shape.num_heads.into();
        for tensor in [&self.query, &self.output, &self.log_sum_exp] {
            tensor.check_addressable(q_batches, heads)?;
        }
        for tensor in [&self.key, &self.value] {
            tensor.check_addressable(kv_batches, shape.num_kv_heads.into())?;
        }
        if let Some(bias) = &self.bias {
            bias.check_addressable(shape.batch.into(), heads)?;
        }
        check_injective(&self.output, "output_layout token stride", q_batches, heads)
    }

    /// The span of keys or values of a chunk: of pages, all.
    pub fn kv_operand(
        &self,
        tensor: &Tensor,
        (batches, kv_heads): &Chunk,
        paged: bool,
    ) -> (Operand, u32) {
        match paged {
            true => tensor.operand(&(0..self.batches[1]), kv_heads),
            false => tensor.operand(batches, kv_heads),
        }
    }

    /// Cuts the batch, and below it the key/value heads, so that each tensor's part fits one binding and
    /// the grid and all indices fit 32 bits. `others` are bound beside these, by query heads.
    pub fn chunks(
        &self,
        shape: &AttentionShape,
        others: &[Tensor],
        binding_size: u64,
    ) -> Result<Vec<Chunk>, Error> {
        let (batch, kv_heads) = (u64::from(shape.batch), u64::from(shape.num_kv_heads));
        let group = u64::from(shape.num_heads / shape.num_kv_heads);
        // a window is widened by less than one alignment
        let allowed = binding_size.min(1 << 31).saturating_sub(256);
        let largest = |batches: u64, kv_heads: u64| {
            let bytes = |tensor: &Tensor, batches, heads| {
                tensor.span(&(0..batches), &(0..heads)).end * tensor.element.size()
            };
            let pages = if shape.paged.is_some() {
                self.batches[1]
            } else {
                batches
            };
            let kv = [&self.key, &self.value].map(|tensor| bytes(tensor, pages, kv_heads));
            let q = [&self.query, &self.output]
                .into_iter()
                .chain(&self.bias)
                .chain(others);
            let q = q.map(|tensor| bytes(tensor, batches, kv_heads * group));
            q.chain(kv).max().unwrap_or(0)
        };
        let most = |limit: u64, fits: &dyn Fn(u64) -> bool| {
            // the largest count that fits; sizes grow with the count
            let (mut low, mut high) = (0, limit);
            while low < high {
                let middle = (low + high).div_ceil(2);
                if fits(middle) {
                    low = middle
                } else {
                    high = middle - 1
                }
            }
            low
        };
        let batches_each = most(batch, &|batches| largest(batches, kv_heads) <= allowed);
        if batches_each > 0 {
            check_dispatches(batch.div_ceil(batches_each))?;
            return Ok(ranges(batch, batches_each)
                .map(|range| (range, 0..kv_heads))
                .collect());
        }
        let heads_each = most(kv_heads, &|heads| largest(1, heads) <= allowed);
        if heads_each == 0 {
            return Err(Error::Limit {
                limit: "max_storage_buffer_binding_size",
                needed: largest(1, 1),
                allowed,
            });
        }
        check_dispatches(batch.saturating_mul(kv_heads.div_ceil(heads_each)))?;
        let heads = move |row| ranges(kv_heads, heads_each).map(move |heads| (row..row + 1, heads));
        Ok((0..batch).flat_map(heads).collect())
    }
}

/// What is written must not have two indices for one place.
pub(super) fn check_injective(
    tensor: &Tensor,
    name: &'static str,
    batches: u64,
    heads: u64,
) -> Result<(), Error> {
    if tensor.is_injective(batches, heads) {
        return Ok(());
    }
    let expected = "strides under which no two elements share a place";
    Err(Error::shape(name, tensor.token, expected))
}

/// `0..count` in pieces of `each`.
fn ranges(count: u64, each: u64) -> impl Iterator<Item = Range<u64>> {
    (0..count.div_ceil(each)).map(move |i| i * each..((i + 1) * each).min(count))
}
