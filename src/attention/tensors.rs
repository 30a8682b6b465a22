//! Where the tensors of a call lie, and how they are cut to fit a device's bindings.

use std::ops::Range;

use super::{AttentionShape, Layout};
use crate::Error;
use crate::plan::{check_dispatches, check_elements};

/// Strides and lengths of one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor {
    pub name: &'static str,
    pub batch: u64,
    pub head: u64,
    pub token: u64,
    len: u64,
    dim: u64,
}

impl Tensor {
    fn new(name: &'static str, layout: Layout, heads: u32, len: u32, dim: u32) -> Self {
        let [heads, len, dim] = [heads, len, dim].map(u64::from);
        // of a contiguous tensor that is too large for 64 bits, `is_addressable` sees the largest number
        let all = heads.saturating_mul(len * dim);
        let (batch, head, token) = match layout {
            Layout::Bhsd => (all, len * dim, dim),
            Layout::Bshd => (all, dim, heads * dim),
            Layout::Strides { batch, head, token } => (batch.into(), head.into(), token.into()),
        };
        Self {
            name,
            batch,
            head,
            token,
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
        if self.len == 0 {
            return 0..0;
        }
        let first = batches.start * self.batch + heads.start * self.head;
        let last = (batches.end - 1) * self.batch
            + (heads.end - 1) * self.head
            + (self.len - 1) * self.token;
        first..last + self.dim
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

/// The five tensors of a call.
pub(super) struct Tensors {
    pub query: Tensor,
    pub key: Tensor,
    pub value: Tensor,
    pub output: Tensor,
    pub log_sum_exp: Tensor,
}

impl Tensors {
    pub fn new(head_dim: u32, value_dim: u32, shape: &AttentionShape) -> Self {
        let AttentionShape {
            num_heads,
            num_kv_heads,
            q_len,
            kv_len,
            ..
        } = *shape;
        Self {
            query: Tensor::new("query", shape.query_layout, num_heads, q_len, head_dim),
            key: Tensor::new("key", shape.key_layout, num_kv_heads, kv_len, head_dim),
            value: Tensor::new("value", shape.value_layout, num_kv_heads, kv_len, value_dim),
            output: Tensor::new("output", shape.output_layout, num_heads, q_len, value_dim),
            log_sum_exp: Tensor::new("log_sum_exp", Layout::Bhsd, num_heads, q_len, 1),
        }
    }

    pub fn check(&self, shape: &AttentionShape) -> Result<(), Error> {
        let (batch, heads) = (shape.batch.into(), shape.num_heads.into());
        for tensor in [&self.query, &self.output, &self.log_sum_exp] {
            tensor.check_addressable(batch, heads)?;
        }
        for tensor in [&self.key, &self.value] {
            tensor.check_addressable(batch, shape.num_kv_heads.into())?;
        }
        if !self.output.is_injective(batch, heads) {
            let expected = "strides under which no two elements share a place";
            return Err(Error::shape(
                "output_layout token stride",
                self.output.token,
                expected,
            ));
        }
        Ok(())
    }

    /// Cuts the batch, and below it the key/value heads, so that each tensor's part fits one binding and
    /// the grid and all indices fit 32 bits.
    pub fn chunks(&self, shape: &AttentionShape, binding_size: u64) -> Result<Vec<Chunk>, Error> {
        let (batch, kv_heads) = (u64::from(shape.batch), u64::from(shape.num_kv_heads));
        let group = u64::from(shape.num_heads / shape.num_kv_heads);
        // a window is widened by less than one alignment
        let allowed = binding_size.min(1 << 31).saturating_sub(256);
        let largest = |batches: u64, kv_heads: u64| {
            let kv = |tensor: &Tensor| tensor.span(&(0..batches), &(0..kv_heads)).end;
            let q = |tensor: &Tensor| tensor.span(&(0..batches), &(0..kv_heads * group)).end;
            let tensors = [
                q(&self.query),
                kv(&self.key),
                kv(&self.value),
                q(&self.output),
            ];
            tensors.into_iter().max().unwrap_or(0) * 4
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

/// `0..count` in pieces of `each`.
fn ranges(count: u64, each: u64) -> impl Iterator<Item = Range<u64>> {
    (0..count.div_ceil(each)).map(move |i| i * each..((i + 1) * each).min(count))
}
