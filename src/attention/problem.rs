//! The parameters that all kernels of attention share, for one dispatch.

use std::borrow::Cow;

use super::gathered::Gathered;
use super::tensors::{Chunk, Tensors};
use super::{AttentionConfig, AttentionGiven, AttentionShape, Causal};
use crate::ElementType;
use crate::kernel::{COMMON, Constant, Constants, Operand, params};
use crate::philox::threshold;

const PROBLEM: &str = include_str!("../../shaders/attention_problem.wgsl");
const SCORES: &str = include_str!("../../shaders/attention_scores.wgsl");
const LOADS: &str = include_str!("../../shaders/attention_loads.wgsl");
const LOADS_VECTORS: &str = include_str!("../../shaders/attention_loads_vectors.wgsl");
const PHILOX: &str = include_str!("../../shaders/philox.wgsl");
const UNIFORM: &str = include_str!("../../shaders/attention_uniform.wgsl");

params! {
    pub(super) struct Params {
        num_batches: u32,
        num_heads: u32,
        batch_first: u32,
        head_first: u32,
        all_heads: u32,
        q_len: u32,
        kv_len: u32,
        group_size: u32,
        num_tiles: u32,
        num_splits: u32,
        split_keys: u32,
        num_groups: u32,
        flags: u32,
        scale_log2: f32,
        scale: f32,
        softcap_log2: f32,
        softcap_scale: f32,
        offset: i32,
        upper: i32,
        lower: i32,
        dropout_threshold: u32,
        dropout_scale: f32,
        seed_low: u32,
        seed_high: u32,
        query_first: u32,
        query_batch: u32,
        query_head: u32,
        query_token: u32,
        key_first: u32,
        key_batch: u32,
        key_head: u32,
        key_token: u32,
        value_first: u32,
        value_batch: u32,
        value_head: u32,
        value_token: u32,
        output_first: u32,
        output_batch: u32,
        output_head: u32,
        output_token: u32,
        output_split: u32,
        log_sum_exp_first: u32,
        log_sum_exp_batch: u32,
        log_sum_exp_head: u32,
        log_sum_exp_split: u32,
        bias_first: u32,
        bias_batch: u32,
        bias_head: u32,
        bias_query: u32,
        bias_key: u32,
        lengths_at: u32,
        query_starts_at: u32,
        key_starts_at: u32,
        query_total: u32,
        key_total: u32,
        pages_at: u32,
        pages_row: u32,
        page_size: u32,
        num_pages: u32,
        slopes_at: u32,
        sinks_at: u32,
        mask_at: u32,
        mask_batch: u32,
        mask_head: u32,
        mask_query: u32,
        classes_at: u32,
        classes_batch: u32,
        classes_head: u32,
        classes_query: u32,
        statistics_at: u32,
        gradient_first: u32,
        second_gradient_first: u32,
        chosen_head_first: u32,
        chosen_heads: u32,
        chosen_row_first: u32,
        chosen_rows: u32,
    }
}

const HAS_LENGTHS: u32 = 1;
const IS_PACKED: u32 = 2;
const BOTTOM_RIGHT: u32 = 4;
pub(super) const WRITE_LOG_SUM_EXP: u32 = 8;
const HAS_SINKS: u32 = 16;

/// Beyond it ALiBi's distances are not exact in f32 anyway.
const MAX_OFFSET: i64 = 1 << 29;

/// A call: what all its dispatches have in common.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub config: &'a AttentionConfig,
    pub shape: &'a AttentionShape,
    pub given: AttentionGiven,
    pub tensors: &'a Tensors,
    pub gathered: &'a Gathered,
    /// Whether the device is a CPU, whose caches are better served head by head.
    pub cpu: bool,
}

/// The inputs of a chunk as operands.
pub(super) struct Inputs {
    pub query: Operand,
    pub key: Operand,
    pub value: Operand,
    pub bias: Operand,
}

impl Problem<'_> {
    /// The query heads of a chunk.
    pub fn heads(&self, (_, kv_heads): &Chunk) -> std::ops::Range<u64> {
        let group = u64::from(self.shape.group_size());
        kv_heads.start * group..kv_heads.end * group
    }

    /// The parameters of a chunk as far as they do not depend on the kernel, and what they index into.
    pub fn params(&self, chunk: &Chunk) -> (Params, Inputs) {
        let Self {
            config,
            shape,
            tensors,
            gathered,
            ..
        } = *self;
        let Tensors {
            query, key, value, ..
        } = tensors;
        let heads = self.heads(chunk);
        let paged = shape.paged.is_some();
        let (query_operand, query_first) = query.operand(&chunk.0, &heads);
        let (key_operand, key_first) = tensors.kv_operand(key, chunk, paged);
        let (value_operand, value_first) = tensors.kv_operand(value, chunk, paged);
        let (bias_operand, bias_first) = match &tensors.bias {
            Some(bias) => bias.operand(&chunk.0, &heads),
            None => (Operand::Unused, 0),
        };
        let bias = tensors.bias.as_ref();
        let bias_key = u32::from(bias.is_some() && shape.bias_axes.key);
        let bias = |stride: &dyn Fn(&super::tensors::Tensor) -> u64| bias.map_or(0, stride) as u32;

        let scale = config.scale();
        let (softcap_log2, softcap_scale) = config.softcap.map_or((0.0, 0.0), |cap| {
            (
                f64::from(cap) * std::f64::consts::LOG2_E,
                scale / f64::from(cap),
            )
        });
        // any bound beyond the lengths means the same as one at them; the kernel adds the offset of each batch
        // row where it depends on lengths
        let reach = i64::from(shape.q_len.max(shape.kv_len)) + 1;
        let offset = config.causal.offset(shape.q_len, shape.kv_len).unwrap_or(0);
        let (fixed, reach) = match config.causal {
            Causal::BottomRight => (0, 2 * reach),
            _ => (offset, reach),
        };
        let right = match config.causal {
            Causal::No => config.window_right.map_or(reach, i64::from),
            _ => 0,
        };
        let left = config.window_left.map_or(reach, i64::from);
        let packed = shape.packed.unwrap_or_default();
        let paged = shape.paged.unwrap_or_default();
        let mask = &gathered.mask;
        let params = Params {
            num_batches: (chunk.0.end - chunk.0.start) as u32,
            num_heads: (heads.end - heads.start) as u32,
            batch_first: chunk.0.start as u32,
            head_first: heads.start as u32,
            all_heads: shape.num_heads,
            q_len: shape.q_len,
            kv_len: shape.kv_len,
            group_size: shape.group_size(),
            num_splits: 1,
            split_keys: 1 << 30,
            flags: self.flags(),
            scale_log2: (scale * std::f64::consts::LOG2_E) as f32,
            scale: scale as f32,
            softcap_log2: softcap_log2 as f32,
            softcap_scale: softcap_scale as f32,
            offset: offset.clamp(-MAX_OFFSET, MAX_OFFSET) as i32,
            upper: (fixed + right).clamp(-reach, reach) as i32,
            lower: (fixed - left).clamp(-reach, reach) as i32,
            dropout_threshold: config.dropout.map_or(0, threshold),
            dropout_scale: config.dropout.map_or(1.0, |probability| {
                (1.0 / (1.0 - f64::from(probability))) as f32
            }),
            seed_low: shape.seed as u32,
            seed_high: (shape.seed >> 32) as u32,
            query_first,
            query_batch: query.batch as u32,
            query_head: query.head as u32,
            query_token: query.token as u32,
            key_first,
            key_batch: key.batch as u32,
            key_head: key.head as u32,
            key_token: key.token as u32,
            value_first,
            value_batch: value.batch as u32,
            value_head: value.head as u32,
            value_token: value.token as u32,
            bias_first,
            bias_batch: bias(&|bias| bias.batch),
            bias_head: bias(&|bias| bias.head),
            bias_query: bias(&|bias| bias.token),
            bias_key,
            lengths_at: gathered.lengths_at as u32,
            query_starts_at: gathered.query_starts_at as u32,
            key_starts_at: gathered.key_starts_at as u32,
            query_total: packed.query_tokens,
            key_total: packed.key_tokens,
            pages_at: gathered.pages_at as u32,
            pages_row: gathered.pages_row as u32,
            page_size: paged.block_size.max(1),
            num_pages: paged.num_blocks.max(1),
            slopes_at: gathered.slopes_at as u32,
            sinks_at: gathered.sinks_at as u32,
            mask_at: gathered.mask_at as u32,
            mask_batch: mask.batch as u32,
            mask_head: mask.head as u32,
            mask_query: mask.query as u32,
            classes_at: mask.classes_at as u32,
            classes_batch: mask.classes_batch as u32,
            classes_head: mask.classes_head as u32,
            classes_query: mask.classes_query as u32,
            ..Default::default()
        };
        let inputs = Inputs {
            query: query_operand,
            key: key_operand,
            value: value_operand,
            bias: bias_operand,
        };
        (params, inputs)
    }

    fn flags(&self) -> u32 {
        let bottom_right = self.config.causal == Causal::BottomRight;
        [
            (self.given.kv_lengths, HAS_LENGTHS),
            (self.shape.packed.is_some(), IS_PACKED),
            (bottom_right, BOTTOM_RIGHT),
            (self.given.log_sum_exp, WRITE_LOG_SUM_EXP),
            (self.config.sinks, HAS_SINKS),
        ]
        .into_iter()
        .filter_map(|(given, flag)| given.then_some(flag))
        .sum()
    }

    /// The constants that the shared parts know; `blocks`: the rows and keys of the mask's classes.
    pub fn constants(&self, blocks: Option<super::gathered::Blocks>) -> Constants {
        let config = self.config;
        let [above, below] = config.bounded();
        let is_bias = |element| Constant::Bool(config.bias == Some(element));
        let (rows, keys) = blocks.map_or((1, 1), |blocks| (blocks.rows, blocks.keys));
        let from_device = self.given.kv_lengths || self.shape.packed.is_some();
        vec![
            ("HEAD_DIM", Constant::U32(config.head_dim)),
            ("VALUE_DIM", Constant::U32(config.value_dim())),
            ("BOUNDED_ABOVE", Constant::Bool(above)),
            ("BOUNDED_BELOW", Constant::Bool(below)),
            ("LONGEST_FIRST", Constant::Bool(above && !self.cpu)),
            ("SOFTCAP", Constant::Bool(config.softcap.is_some())),
            ("DROPOUT", Constant::Bool(config.dropout.is_some())),
            ("BIAS", Constant::Bool(config.bias.is_some())),
            ("BIAS_F16", is_bias(ElementType::F16)),
            ("BIAS_BF16", is_bias(ElementType::Bf16)),
            ("MASK", Constant::Bool(config.mask)),
            ("ALIBI", Constant::Bool(config.alibi)),
            ("PAGED", Constant::Bool(self.shape.paged.is_some())),
            // pairs inside a tile's keys may be masked
            (
                "MASKS_PAIRS",
                Constant::Bool(above || below || config.bias.is_some() || config.mask),
            ),
            ("CLASSES", Constant::Bool(config.mask && blocks.is_some())),
            // lengths and starts that only the device knows
            ("FROM_DEVICE", Constant::Bool(from_device)),
            ("CLASS_ROWS", Constant::U32(rows)),
            ("CLASS_KEYS", Constant::U32(keys)),
            ("ALIGNED", Constant::Bool(self.is_aligned())),
        ]
    }

    /// Whether the rows of all tensors lie at multiples of four elements, so that vectors can be loaded at once.
    pub fn is_aligned(&self) -> bool {
        let Tensors {
            query,
            key,
            value,
            output,
            ..
        } = self.tensors;
        [query, key, value, output]
            .iter()
            .all(|tensor| tensor.is_aligned())
    }

    /// The parts in front of a kernel's own, one of which declares its tensors, one its struct `Lane`; the tensors
    /// are of words that hold an element or two, or, `aligned`, four.
    pub fn parts(
        &self,
        aligned: bool,
        own: impl IntoIterator<Item = &'static str>,
    ) -> Cow<'static, [&'static str]> {
        let element = self.config.element;
        let (elements, loads) = match aligned {
            true => (element.vectors_part(), LOADS_VECTORS),
            false => (element.part(), LOADS),
        };
        let shared = [COMMON, elements, PHILOX, PROBLEM, SCORES, loads, UNIFORM];
        Cow::Owned(shared.into_iter().chain(own).collect())
    }
}
