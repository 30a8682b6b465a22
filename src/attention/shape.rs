//! What a call of attention is about: sizes, layouts, axes.

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

/// Which axes of `[batch, num_heads, q_len, kv_len]` a bias or mask has; along the others it is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axes {
    /// One for each batch row.
    pub batch: bool,
    /// One for each query head.
    pub head: bool,
    /// One for each query.
    pub query: bool,
    /// One for each key.
    pub key: bool,
}

impl Axes {
    /// All of them.
    pub const ALL: Self = Self {
        batch: true,
        head: true,
        query: true,
        key: true,
    };
}

/// Sequences of various lengths, one behind the other: query and output `[query_tokens, num_heads, dim]`,
/// key and value `[key_tokens, num_kv_heads, dim]` ([`Layout::Bshd`]), or heads first ([`Layout::Bhsd`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packed {
    /// Of all sequences together.
    pub query_tokens: u32,
    /// Of all sequences together.
    pub key_tokens: u32,
}

/// Keys and values in pages: `[num_blocks, num_kv_heads, block_size, dim]` ([`Layout::Bhsd`]) or
/// `[num_blocks, block_size, num_kv_heads, dim]` ([`Layout::Bshd`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paged {
    /// Pages there are.
    pub num_blocks: u32,
    /// Keys of a page.
    pub block_size: u32,
    /// Pages that a row of the block table can name.
    pub max_blocks: u32,
}

/// What varies per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Independent problems; sequences, where they are packed.
    pub batch: u32,
    /// Query heads.
    pub num_heads: u32,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: u32,
    /// Queries per head, of the longest sequence: less than 2^28.
    pub q_len: u32,
    /// Keys and values per head, of the longest sequence: less than 2^28.
    pub kv_len: u32,
    /// Of `query`.
    pub query_layout: Layout,
    /// Of `key`.
    pub key_layout: Layout,
    /// Of `value`.
    pub value_layout: Layout,
    /// Of `output`.
    pub output_layout: Layout,
    /// Of `bias`.
    pub bias_axes: Axes,
    /// Of `mask`.
    pub mask_axes: Axes,
    /// Sequences one behind the other, which need `cu_seqlens_q` and `cu_seqlens_k`.
    pub packed: Option<Packed>,
    /// Keys and values in pages, which need `block_table` and `kv_lengths`.
    pub paged: Option<Paged>,
    /// Of dropout.
    pub seed: u64,
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
            bias_axes: Axes::ALL,
            mask_axes: Axes::ALL,
            packed: None,
            paged: None,
            seed: 0,
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

    /// Query heads per key/value head, of a shape that has been checked.
    pub(super) fn group_size(&self) -> u32 {
        self.num_heads / self.num_kv_heads.max(1)
    }
}
