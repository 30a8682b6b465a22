//! How a forward call of additive attention runs, and how its tensors are cut to fit a device's bindings.

use std::ops::Range;

use super::tile::Tile;
use super::{AdditiveAttentionConfig, AdditiveAttentionMask, AdditiveAttentionShape};
use crate::kernel::{Constant, Dispatch, Operand, WINDOW_ALIGNMENT, fold_grid, params};
use crate::plan::{check_dispatches, check_elements};
use crate::{Capabilities, Error, Plan, Variant};

params! {
    pub(super) struct Params {
        dim: u32,
        value_dim: u32,
        q_len: u32,
        kv_len: u32,
        num_tiles: u32,
        num_groups: u32,
        has_lengths: u32,
        write_log_sum_exp: u32,
        query_first: u32,
        key_first: u32,
        value_first: u32,
        mask_first: u32,
        mask_batch: u32,
        mask_row: u32,
        mask_column: u32,
        kv_lengths_first: u32,
        result_first: u32,
        log_sum_exp_first: u32,
    }
}

/// Elements of a batch row of one tensor, and bytes of an element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor {
    pub name: &'static str,
    pub each: u128,
    pub size: u64,
}

impl Tensor {
    pub fn new(name: &'static str, axes: [u32; 2], size: u64) -> Self {
        let each = u128::from(axes[0]) * u128::from(axes[1]);
        Self { name, each, size }
    }

    /// Its elements of some batch rows, and where they begin in the window.
    pub fn operand(&self, batches: &Range<u64>) -> (Operand, u32) {
        // `check` has seen that these fit 64 bits
        let each = self.each as u64;
        window(
            self.name,
            batches.start * each..batches.end * each,
            self.size,
        )
    }
}

/// The elements `range` of a tensor of `size` bytes each, widened to whole words from an aligned start, and how
/// many elements that start lies before the first.
pub(super) fn window(name: &'static str, range: Range<u64>, size: u64) -> (Operand, u32) {
    if range.is_empty() {
        return (Operand::Unused, 0);
    }
    let start = range.start * size / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
    let window = start..(range.end * size).next_multiple_of(4);
    let skipped = (range.start * size - start) / size;
    (Operand::Slice { name, window }, skipped as u32)
}

/// What the launches of a call share, forward and backward.
pub(super) struct Planner<'a> {
    pub config: &'a AdditiveAttentionConfig,
    pub shape: AdditiveAttentionShape,
    pub variant: Variant,
    pub tile: Tile,
    allowed: u64,
}

/// Where a mask lies, as the kernels take it: the operand, the first byte and the strides of batch row, query
/// and key.
pub(super) struct MaskWindow {
    pub operand: Operand,
    pub first: u32,
    pub batch: u32,
    pub query: u32,
    pub key: u32,
}

impl<'a> Planner<'a> {
    pub fn new(
        config: &'a AdditiveAttentionConfig,
        capabilities: &Capabilities,
        shape: AdditiveAttentionShape,
    ) -> Result<Self, Error> {
        let variants = config.variants(capabilities);
        let variant = Variant::choose(config.variant, variants, "additive attention")?;
        for (name, dim) in [("dim", config.dim), ("value_dim", config.value_dim())] {
            if !(1..1 << 24).contains(&dim) {
                return Err(Error::shape(name, dim, "1 to less than 2^24"));
            }
        }
        for (name, len) in [("q_len", shape.q_len), ("kv_len", shape.kv_len)] {
            if len >= 1 << 30 {
                return Err(Error::shape(name, len, "less than 2^30"));
            }
        }
        Ok(Self {
            config,
            shape,
            variant,
            tile: Tile::choose(capabilities, variant),
            // a window is widened by less than one alignment
            allowed: capabilities
                .storage_binding_size
                .min(1 << 31)
                .saturating_sub(WINDOW_ALIGNMENT),
        })
    }

    /// Query, key and value.
    pub fn inputs(&self) -> [Tensor; 3] {
        let (config, shape) = (self.config, &self.shape);
        let size = config.element.size();
        [
            Tensor::new("query", [shape.q_len, config.dim], size),
            Tensor::new("key", [shape.kv_len, config.dim], size),
            Tensor::new("value", [shape.kv_len, config.value_dim()], size),
        ]
    }

    pub fn output(&self) -> Tensor {
        Tensor::new("output", [self.shape.q_len, self.config.value_dim()], 4)
    }

    pub fn log_sum_exp(&self) -> Tensor {
        Tensor::new("log_sum_exp", [self.shape.q_len, 1], 4)
    }

    pub fn mask(&self, batches: &Range<u64>) -> MaskWindow {
        let Some(mask) = self.shape.mask else {
            return MaskWindow {
                operand: Operand::Unused,
                first: 0,
                batch: 0,
                query: 0,
                key: 0,
            };
        };
        let [_, queries, keys] = mask.extents(&self.shape).map(u64::from);
        let each = queries * keys;
        let batches = if mask.batch { batches.clone() } else { 0..1 };
        let (operand, first) = window("mask", batches.start * each..batches.end * each, 1);
        let stride = |full: bool, stride: u64| if full { stride as u32 } else { 0 };
        MaskWindow {
            operand,
            first,
            batch: stride(mask.batch, each),
            query: stride(mask.query, keys),
            key: stride(mask.key, 1),
        }
    }

    pub fn kv_lengths(&self, batches: &Range<u64>) -> (Operand, u32) {
        match self.shape.kv_lengths {
            true => window("kv_lengths", batches.clone(), 4),
            false => (Operand::Unused, 0),
        }
    }

    /// The batch in pieces under which each tensor's part fits one binding and all indices fit 32 bits.
    pub fn chunks(&self, tensors: &[Tensor]) -> Result<Vec<Range<u64>>, Error> {
        let batch = u64::from(self.shape.batch);
        let mask = self.shape.mask.map(|mask| Tensor {
            name: "mask",
            each: mask_bytes(mask, &self.shape),
            size: 1,
        });
        let tensors = tensors.iter().copied().chain(mask);
        let mut batches_each = batch.max(1);
        for tensor in tensors {
            check_elements(u128::from(batch) * tensor.each)?;
            let needed = tensor.each * u128::from(tensor.size);
            let allowed = u128::from(self.allowed);
            if needed > allowed {
                return Err(Error::Limit {
                    limit: "max_storage_buffer_binding_size",
                    needed: u64::try_from(needed).unwrap_or(u64::MAX),
                    allowed: self.allowed,
                });
            }
            let fits = allowed.checked_div(needed).unwrap_or(allowed);
            batches_each = batches_each.min(u64::try_from(fits).unwrap_or(u64::MAX));
        }
        let count = batch.div_ceil(batches_each);
        check_dispatches(count)?;
        Ok((0..count)
            .map(|i| i * batches_each..((i + 1) * batches_each).min(batch))
            .collect())
    }

    fn dispatches(&self, batches: &Range<u64>, log_sum_exp: bool, weights: bool) -> Vec<Dispatch> {
        let shape = &self.shape;
        let [query, key, value] = self.inputs().map(|tensor| tensor.operand(batches));
        let mask = self.mask(batches);
        let (lengths, kv_lengths_first) = self.kv_lengths(batches);
        let (v, _) = window("v", 0..self.config.dim.into(), 4);
        let output = self.output().operand(batches);
        let lse = match log_sum_exp {
            true => self.log_sum_exp().operand(batches),
            false => (Operand::Unused, 0),
        };
        let num_tiles = shape.q_len.div_ceil(self.tile.rows_each());
        let num_groups = u64::from(num_tiles) * (batches.end - batches.start);
        let constants = self.tile.constants(shape.mask.is_some());
        let dispatch = |kernel, extra: Option<bool>, result: (Operand, u32)| {
            let params = Params {
                dim: self.config.dim,
                value_dim: self.config.value_dim(),
                q_len: shape.q_len,
                kv_len: shape.kv_len,
                num_tiles,
                num_groups: num_groups as u32,
                has_lengths: shape.kv_lengths.into(),
                write_log_sum_exp: log_sum_exp.into(),
                query_first: query.1,
                key_first: key.1,
                value_first: value.1,
                mask_first: mask.first,
                mask_batch: mask.batch,
                mask_row: mask.query,
                mask_column: mask.key,
                kv_lengths_first,
                result_first: result.1,
                log_sum_exp_first: lse.1,
            };
            let mut constants = constants.clone();
            constants.extend(extra.map(|many| ("MANY_VALUE_CHUNKS", Constant::Bool(many))));
            let operands = [
                &query.0,
                &key.0,
                &value.0,
                &v,
                &mask.operand,
                &lengths,
                &result.0,
                &lse.0,
            ];
            Dispatch {
                kernel,
                constants,
                params: bytemuck::bytes_of(&params).to_vec(),
                operands: operands.into_iter().cloned().collect(),
                grid: fold_grid(num_groups),
                steps: 1,
            }
        };
        let element = self.config.element;
        let many = self.config.value_dim() > self.tile.values;
        let mut dispatches = vec![dispatch(self.tile.forward(element), Some(many), output)];
        if weights && shape.kv_len > 0 {
            let weights = Tensor::new("weights", [shape.q_len, shape.kv_len], 4);
            let weights = weights.operand(batches);
            dispatches.push(dispatch(self.tile.weights(element), None, weights));
        }
        dispatches
    }
}

fn mask_bytes(mask: AdditiveAttentionMask, shape: &AdditiveAttentionShape) -> u128 {
    let [_, queries, keys] = mask.extents(shape).map(u128::from);
    queries * keys
}

impl AdditiveAttentionConfig {
    /// The variants that a device can run, best first.
    pub fn variants(&self, capabilities: &Capabilities) -> impl Iterator<Item = Variant> + use<> {
        // only the tile for CPUs uses subgroups: each lane is one of its registers
        let lanes = capabilities
            .fixed_subgroup_size()
            .is_some_and(|size| size == 4 || size == 8);
        let subgroup = (capabilities.cpu && lanes).then_some(Variant::Subgroup);
        subgroup.into_iter().chain([Variant::Portable])
    }

    /// How a call runs on a device with `capabilities`; pure. The booleans say which of the optional outputs
    /// are asked for.
    ///
    /// Of the operations in `flops`, an element of a score has four: a sum, a tanh and a multiply-add.
    ///
    /// # Errors
    /// [`Error::Shape`] for a dimension of 0 and lengths of 2^30 or more, [`Error::Operand`] for weights without
    /// `log_sum_exp`, [`Error::Feature`] for a forced variant that the device cannot run, [`Error::Limit`] for a
    /// batch row larger than a binding.
    pub fn plan(
        &self,
        capabilities: &Capabilities,
        shape: AdditiveAttentionShape,
        log_sum_exp: bool,
        weights: bool,
    ) -> Result<Plan, Error> {
        if weights && !log_sum_exp {
            return Err(Error::Operand {
                name: "log_sum_exp",
                problem: "is needed for the weights and missing",
            });
        }
        let planner = Planner::new(self, capabilities, shape)?;
        let [query, key, value] = planner.inputs();
        let mut tensors = vec![query, key, value, planner.output(), planner.log_sum_exp()];
        if weights {
            tensors.push(Tensor::new("weights", [shape.q_len, shape.kv_len], 4));
        }
        let chunks = planner.chunks(&tensors)?;
        let mut dispatches = Vec::new();
        if shape.q_len > 0 {
            dispatches.extend(
                chunks
                    .iter()
                    .flat_map(|chunk| planner.dispatches(chunk, log_sum_exp, weights)),
            );
        }
        let [batch, q_len, kv_len] = [shape.batch, shape.q_len, shape.kv_len].map(f64::from);
        let [dim, value_dim] = [self.dim, self.value_dim()].map(f64::from);
        let pairs = batch * q_len * kv_len;
        let size = self.element.size() as f64;
        let read = batch * (q_len * dim + kv_len * (dim + value_dim)) * size;
        let written = batch * q_len * (value_dim + 1.0) + if weights { pairs } else { 0.0 };
        Ok(Plan {
            variant: planner.variant,
            describe: planner.tile.describe(),
            dispatches,
            scratch_size: 0,
            flops: pairs * (4.0 * dim + 2.0 * value_dim),
            bytes: read + 4.0 * written,
        })
    }
}
