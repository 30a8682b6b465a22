//! The small tensors of a call, gathered in scratch by dispatches of their own before the attention kernels run.

use std::borrow::Cow;

use super::{AttentionConfig, AttentionGiven, AttentionShape};
use crate::kernel::{
    Access, COMMON, Constant, Dispatch, Kernel, Operand, WINDOW_ALIGNMENT, fold_grid, params,
};
use crate::{Capabilities, Error};

params! {
    struct PrepareParams {
        lengths_len: u32,
        lengths_at: u32,
        starts_len: u32,
        query_starts_at: u32,
        key_starts_at: u32,
        pages_len: u32,
        pages_at: u32,
        slopes_len: u32,
        slopes_at: u32,
        sinks_len: u32,
        sinks_at: u32,
    }
}

params! {
    struct MaskParams {
        kv_len: u32,
        row_words: u32,
        num_words: u32,
        mask_at: u32,
    }
}

params! {
    struct ClassesParams {
        kv_len: u32,
        q_len: u32,
        row_words: u32,
        row_blocks: u32,
        key_blocks: u32,
        num_blocks: u32,
        mask_at: u32,
        classes_at: u32,
    }
}

/// Rows and keys of the blocks that a kernel asks the class of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub rows: u32,
    pub keys: u32,
}

/// The mask as bits, and the classes of its blocks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mask {
    /// Strides in words; 0 for an axis that the mask lacks.
    pub batch: u64,
    pub head: u64,
    pub query: u64,
    pub classes_at: u64,
    pub classes_batch: u64,
    pub classes_head: u64,
    pub classes_query: u64,
    row_words: u64,
    heads: u64,
    q_len: u64,
    row_blocks: u64,
    key_blocks: u64,
}

/// Where everything lies, in words from the start of scratch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gathered {
    pub lengths_at: u64,
    pub query_starts_at: u64,
    pub key_starts_at: u64,
    pub pages_at: u64,
    pub pages_row: u64,
    pub slopes_at: u64,
    pub sinks_at: u64,
    pub mask_at: u64,
    pub mask: Mask,
    /// The end, a multiple of what a window may start at; 0 if there is nothing.
    pub len: u64,
    lengths_len: u64,
    starts_len: u64,
    pages_len: u64,
    slopes_len: u64,
    sinks_len: u64,
}

impl Gathered {
    pub fn new(
        config: &AttentionConfig,
        shape: &AttentionShape,
        given: AttentionGiven,
        blocks: Option<Blocks>,
    ) -> Self {
        let mut all = Self::default();
        let mut place = |len: u64| {
            let at = all.len;
            all.len += len;
            at
        };
        let if_given = |given: bool, len: u32| if given { u64::from(len) } else { 0 };
        let lengths_len = if_given(given.kv_lengths, shape.batch);
        let starts_len = shape.packed.map_or(0, |_| u64::from(shape.batch) + 1);
        let pages_row = shape.paged.map_or(0, |paged| u64::from(paged.max_blocks));
        let pages_len = u64::from(shape.batch) * pages_row;
        let slopes_len = if_given(config.alibi, shape.num_heads);
        let sinks_len = if_given(config.sinks, shape.num_heads);
        let lengths_at = place(lengths_len);
        let query_starts_at = place(starts_len);
        let key_starts_at = place(starts_len);
        let pages_at = place(pages_len);
        let slopes_at = place(slopes_len);
        let sinks_at = place(sinks_len);
        let mut mask = Mask::default();
        let mut mask_at = 0;
        if config.mask {
            mask = Mask::new(shape, blocks);
            mask_at = place(mask.num_words());
            mask.classes_at = place(mask.num_blocks());
        }
        let len = all.len.next_multiple_of(WINDOW_ALIGNMENT / 4);
        Self {
            lengths_at,
            query_starts_at,
            key_starts_at,
            pages_at,
            pages_row,
            slopes_at,
            sinks_at,
            mask_at,
            mask,
            len,
            lengths_len,
            starts_len,
            pages_len,
            slopes_len,
            sinks_len,
        }
    }

    /// Whether it can be bound, and 32 bits can number its words.
    pub fn check(&self, capabilities: &Capabilities) -> Result<(), Error> {
        let (needed, allowed) = (4 * self.len, capabilities.storage_binding_size.min(1 << 31));
        if needed > allowed {
            return Err(Error::Limit {
                limit: "max_storage_buffer_binding_size",
                needed,
                allowed,
            });
        }
        Ok(())
    }

    /// What the attention kernels bind as `aux`; `len` words of scratch.
    pub fn operand(len: u64) -> Operand {
        match len {
            0 => Operand::Unused,
            len => Operand::whole("scratch", 4 * len),
        }
    }

    pub fn dispatches(
        &self,
        shape: &AttentionShape,
        blocks: Option<Blocks>,
        out: &mut Vec<Dispatch>,
    ) {
        let lens = [
            self.lengths_len,
            self.starts_len,
            self.pages_len,
            self.slopes_len,
            self.sinks_len,
        ];
        let longest = lens.into_iter().max().unwrap_or(0);
        if longest > 0 {
            out.push(self.prepare(longest));
        }
        if self.mask.num_words() > 0 {
            out.push(self.bits(shape));
            if let Some(blocks) = blocks {
                out.push(self.classes(shape, blocks));
            }
        }
    }

    fn prepare(&self, longest: u64) -> Dispatch {
        let operand = |name, len: u64| match len {
            0 => Operand::Unused,
            len => Operand::whole(name, 4 * len),
        };
        let params = PrepareParams {
            lengths_len: self.lengths_len as u32,
            lengths_at: self.lengths_at as u32,
            starts_len: self.starts_len as u32,
            query_starts_at: self.query_starts_at as u32,
            key_starts_at: self.key_starts_at as u32,
            pages_len: self.pages_len as u32,
            pages_at: self.pages_at as u32,
            slopes_len: self.slopes_len as u32,
            slopes_at: self.slopes_at as u32,
            sinks_len: self.sinks_len as u32,
            sinks_at: self.sinks_at as u32,
        };
        Dispatch {
            kernel: Kernel {
                name: "attention_prepare",
                enables: &[],
                parts: Cow::Borrowed(&[
                    COMMON,
                    include_str!("../../shaders/attention_prepare.wgsl"),
                ]),
                params: PrepareParams::FIELDS,
                storage: &[
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Write,
                ],
                stepped: false,
            },
            constants: Vec::new(),
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                operand("kv_lengths", self.lengths_len),
                operand("cu_seqlens_q", self.starts_len),
                operand("cu_seqlens_k", self.starts_len),
                operand("block_table", self.pages_len),
                operand("alibi_slopes", self.slopes_len),
                operand("sinks", self.sinks_len),
                Self::operand(self.len),
            ],
            grid: fold_grid(longest.div_ceil(64)),
            steps: 1,
        }
    }

    fn bits(&self, shape: &AttentionShape) -> Dispatch {
        let keys_broadcast = !shape.mask_axes.key;
        let rows = self.mask.num_words() / self.mask.row_words;
        let bytes = rows
            * if keys_broadcast {
                1
            } else {
                u64::from(shape.kv_len)
            };
        let params = MaskParams {
            kv_len: shape.kv_len,
            row_words: self.mask.row_words as u32,
            num_words: self.mask.num_words() as u32,
            mask_at: self.mask_at as u32,
        };
        Dispatch {
            kernel: Kernel {
                name: "attention_mask",
                enables: &[],
                parts: Cow::Borrowed(&[COMMON, include_str!("../../shaders/attention_mask.wgsl")]),
                params: MaskParams::FIELDS,
                storage: &[Access::Read, Access::Write],
                stepped: false,
            },
            constants: vec![("KEYS_BROADCAST", Constant::Bool(keys_broadcast))],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                Operand::whole("mask", bytes.next_multiple_of(4)),
                Self::operand(self.len),
            ],
            grid: fold_grid(self.mask.num_words().div_ceil(64)),
            steps: 1,
        }
    }

    fn classes(&self, shape: &AttentionShape, blocks: Blocks) -> Dispatch {
        let mask = &self.mask;
        let params = ClassesParams {
            kv_len: shape.kv_len,
            q_len: mask.q_len as u32,
            row_words: mask.row_words as u32,
            row_blocks: mask.row_blocks as u32,
            key_blocks: mask.key_blocks as u32,
            num_blocks: mask.num_blocks() as u32,
            mask_at: self.mask_at as u32,
            classes_at: mask.classes_at as u32,
        };
        Dispatch {
            kernel: Kernel {
                name: "attention_classes",
                enables: &[],
                parts: Cow::Borrowed(&[
                    COMMON,
                    include_str!("../../shaders/attention_classes.wgsl"),
                ]),
                params: ClassesParams::FIELDS,
                storage: &[Access::Write],
                stepped: false,
            },
            constants: vec![
                ("CLASS_ROWS", Constant::U32(blocks.rows)),
                ("CLASS_KEYS", Constant::U32(blocks.keys)),
            ],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![Self::operand(self.len)],
            grid: fold_grid(mask.num_blocks().div_ceil(64)),
            steps: 1,
        }
    }
}

impl Mask {
    fn new(shape: &AttentionShape, blocks: Option<Blocks>) -> Self {
        let axes = shape.mask_axes;
        let has = |axis: bool, len: u32| if axis { u64::from(len) } else { 1 };
        let stride = |axis: bool, stride: u64| if axis { stride } else { 0 };
        let row_words = u64::from(shape.kv_len.div_ceil(32));
        let q_len = has(axes.query, shape.q_len);
        let num_heads = has(axes.head, shape.num_heads);
        let (row_blocks, key_blocks) = blocks.map_or((0, 0), |blocks| {
            let keys = u64::from(shape.kv_len.div_ceil(blocks.keys));
            (q_len.div_ceil(blocks.rows.into()), keys)
        });
        Self {
            batch: stride(axes.batch, num_heads * q_len * row_words),
            head: stride(axes.head, q_len * row_words),
            query: stride(axes.query, row_words),
            classes_at: 0,
            classes_batch: stride(axes.batch, num_heads * row_blocks * key_blocks),
            classes_head: stride(axes.head, row_blocks * key_blocks),
            classes_query: stride(axes.query, key_blocks),
            row_words,
            heads: has(axes.batch, shape.batch) * num_heads,
            q_len,
            row_blocks,
            key_blocks,
        }
    }

    fn num_words(&self) -> u64 {
        self.heads * self.q_len * self.row_words
    }

    fn num_blocks(&self) -> u64 {
        self.heads * self.row_blocks * self.key_blocks
    }
}
