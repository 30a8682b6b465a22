//! Which variant, chunks and grids a call of attention runs with.

use super::tensors::{Chunk, Tensor, Tensors};
use super::tile::Tile;
use super::{AttentionConfig, AttentionShape, Causal};
use crate::kernel::{Dispatch, Operand, fold_grid, params};
use crate::{Capabilities, Error, Plan, Variant};
use std::ops::Range;

const MAX_HEAD_DIM: u32 = 256;

params! {
    pub(super) struct Params {
        q_len: u32,
        kv_len: u32,
        num_heads: u32,
        group_size: u32,
        num_tiles: u32,
        num_groups: u32,
        scale_log2: f32,
        offset: i32,
        write_log_sum_exp: u32,
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
        log_sum_exp_first: u32,
    }
}

impl AttentionConfig {
    /// The variants that a device can run, best first.
    pub fn variants(&self, capabilities: &Capabilities) -> impl Iterator<Item = Variant> + use<> {
        Variant::available(capabilities)
    }

    /// How a call runs on a device with `capabilities`; `log_sum_exp` says whether it is asked for.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Feature`], [`Error::Limit`].
    pub fn plan(
        &self,
        capabilities: &Capabilities,
        shape: AttentionShape,
        log_sum_exp: bool,
    ) -> Result<Plan, Error> {
        let variant = Variant::choose(self.variant, self.variants(capabilities), "attention")?;
        let value_dim = self.value_dim.unwrap_or(self.head_dim);
        for (name, dim) in [("head_dim", self.head_dim), ("value_dim", value_dim)] {
            if !(1..=MAX_HEAD_DIM).contains(&dim) {
                return Err(Error::shape(name, dim, "1 to 256"));
            }
        }
        check(&shape)?;
        let tensors = Tensors::new(self.head_dim, value_dim, &shape);
        tensors.check(&shape)?;

        let tile = Tile::choose(capabilities, variant, self.head_dim, value_dim);
        let mut dispatches = Vec::new();
        if shape.batch > 0 && shape.q_len > 0 {
            let planner = Planner {
                config: self,
                variant,
                tile,
                shape,
                tensors,
                log_sum_exp,
            };
            let chunks = planner
                .tensors
                .chunks(&shape, capabilities.storage_binding_size)?;
            dispatches.extend(chunks.into_iter().map(|chunk| planner.dispatch(chunk)));
        }
        let heads = f64::from(shape.batch) * f64::from(shape.num_heads);
        let kv_heads = f64::from(shape.batch) * f64::from(shape.num_kv_heads);
        let dims = f64::from(self.head_dim) + f64::from(value_dim);
        let rows = heads * f64::from(shape.q_len);
        Ok(Plan {
            variant,
            describe: tile.describe(),
            dispatches,
            scratch_size: 0,
            flops: 2.0 * heads * dims * self.causal.pairs(shape.q_len, shape.kv_len),
            bytes: 4.0 * (dims * (rows + kv_heads * f64::from(shape.kv_len)) + rows),
        })
    }
}

/// What the dispatches of a call depend on.
struct Planner<'a> {
    config: &'a AttentionConfig,
    variant: Variant,
    tile: Tile,
    shape: AttentionShape,
    tensors: Tensors,
    log_sum_exp: bool,
}

impl Planner<'_> {
    /// One launch over some of the batch rows and heads.
    fn dispatch(&self, (batches, kv_heads): Chunk) -> Dispatch {
        let Self {
            config,
            variant,
            tile,
            shape,
            log_sum_exp,
            ..
        } = *self;
        let group_size = shape.num_heads / shape.num_kv_heads;
        let group = u64::from(group_size);
        let heads = kv_heads.start * group..kv_heads.end * group;
        let Tensors {
            query,
            key,
            value,
            output,
            log_sum_exp: lse,
        } = &self.tensors;
        let operand = |tensor: &Tensor, heads: &Range<u64>| match tensor.span(&batches, heads) {
            span if span.is_empty() => (Operand::Unused, 0),
            span => Operand::elements(tensor.name, span),
        };
        let (query_operand, query_first) = operand(query, &heads);
        let (key_operand, key_first) = operand(key, &kv_heads);
        let (value_operand, value_first) = operand(value, &kv_heads);
        let (output_operand, output_first) = operand(output, &heads);
        let (lse_operand, log_sum_exp_first) = if log_sum_exp {
            operand(lse, &heads)
        } else {
            (Operand::Unused, 0)
        };

        let num_heads = (heads.end - heads.start) as u32;
        let num_tiles = shape.q_len.div_ceil(tile.queries());
        let num_groups =
            u64::from(num_tiles) * u64::from(num_heads) * (batches.end - batches.start);
        let head_dim = config.head_dim;
        let scale = config
            .scale
            .map_or_else(|| f64::from(head_dim).sqrt().recip(), f64::from);
        // any offset beyond the lengths means the same as one at them
        let reach = i64::from(shape.q_len.max(shape.kv_len)) + 1;
        let offset = config.causal.offset(shape.q_len, shape.kv_len).unwrap_or(0);
        let params = Params {
            q_len: shape.q_len,
            kv_len: shape.kv_len,
            num_heads,
            group_size,
            num_tiles,
            num_groups: num_groups as u32,
            scale_log2: (scale * std::f64::consts::LOG2_E) as f32,
            offset: offset.clamp(-reach, reach) as i32,
            write_log_sum_exp: log_sum_exp.into(),
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
            output_first,
            output_batch: output.batch as u32,
            output_head: output.head as u32,
            output_token: output.token as u32,
            log_sum_exp_first,
        };
        let value_dim = config.value_dim.unwrap_or(head_dim);
        Dispatch {
            kernel: tile.kernel(variant),
            constants: tile.constants(head_dim, value_dim, config.causal != Causal::No),
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                query_operand,
                key_operand,
                value_operand,
                output_operand,
                lse_operand,
            ],
            grid: fold_grid(num_groups),
            steps: 1,
        }
    }
}

impl Causal {
    /// Query-key pairs that may attend.
    fn pairs(self, q_len: u32, kv_len: u32) -> f64 {
        let Some(offset) = self.offset(q_len, kv_len) else {
            return f64::from(q_len) * f64::from(kv_len);
        };
        let (q_len, kv_len) = (i64::from(q_len), i64::from(kv_len));
        // row i may attend i + offset + 1 keys: none before row `empty`, all from row `full` on
        let empty = (-offset).clamp(0, q_len);
        let full = (kv_len - offset - 1).clamp(empty, q_len);
        let partly = (full - empty) * (empty + full + 2 * offset + 1) / 2;
        (partly + (q_len - full) * kv_len) as f64
    }
}

fn check(shape: &AttentionShape) -> Result<(), Error> {
    if shape.num_heads == 0 {
        return Err(Error::shape("num_heads", 0, "at least 1"));
    }
    if shape.num_kv_heads == 0 || !shape.num_heads.is_multiple_of(shape.num_kv_heads) {
        let expected = format!("a divisor of num_heads, {}", shape.num_heads);
        return Err(Error::shape("num_kv_heads", shape.num_kv_heads, expected));
    }
    for (name, len) in [("q_len", shape.q_len), ("kv_len", shape.kv_len)] {
        if len >= 1 << 30 {
            return Err(Error::shape(name, len, "less than 2^30"));
        }
    }
    Ok(())
}
