//! Which kernel, tile and grid a call of attention runs with.

use std::ops::Range;

use super::{AttentionConfig, AttentionShape, Causal, Layout};
use crate::kernel::{Access, COMMON, Constant, Constants, Dispatch, Kernel, Operand};
use crate::kernel::{fold_grid, params};
use crate::{Capabilities, Error, Plan, Variant};

const PROBLEM: &str = include_str!("../../shaders/attention_problem.wgsl");
const BLOCKED: &str = include_str!("../../shaders/attention.wgsl");
const BROADCAST: &str = include_str!("../../shaders/attention_broadcast.wgsl");
const REDUCE_WORKGROUP: &str = include_str!("../../shaders/reduce_workgroup.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("../../shaders/reduce_subgroup.wgsl");
const BROADCAST_WORKGROUP: &str = include_str!("../../shaders/broadcast_workgroup.wgsl");
const BROADCAST_SUBGROUP: &str = include_str!("../../shaders/broadcast_subgroup.wgsl");

const MAX_HEAD_DIM: u32 = 256;

params! {
    struct Params {
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

/// The shape of a workgroup's share, as data. Both kernels compute the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    /// `attention.wgsl`: an invocation computes `rows` x 4 scores of a tile of `rows * threads_y` queries by
    /// `4 * threads_x` keys, with the head dimension staged `chunk` at a time and `value_keys` values.
    Blocked {
        rows: u32,
        threads_x: u32,
        threads_y: u32,
        chunk: u32,
        value_keys: u32,
    },
    /// `attention_broadcast.wgsl`: an invocation computes four whole rows, `keys` keys at a time.
    Broadcast { threads: u32, keys: u32 },
}

/// The largest `head_dim + value_dim` for which four rows of queries and accumulators per lane beat the
/// blocked tile on a CPU; the broadcast kernel is unrolled over both, so it also bounds compile time.
const BROADCAST_DIMS: u32 = 256;

impl Tile {
    /// A CPU's lanes are its vector registers: rows across lanes, keys broadcast, one subgroup per workgroup
    /// where the subgroup hands the keys round. A GPU gets register blocks over a staged tile, as large as
    /// its registers (about 200 floats per invocation) and workgroup memory allow.
    fn choose(
        capabilities: &Capabilities,
        variant: Variant,
        head_dim: u32,
        value_dim: u32,
    ) -> Self {
        if capabilities.cpu && head_dim + value_dim <= BROADCAST_DIMS {
            match (variant, capabilities.fixed_subgroup_size()) {
                (Variant::Subgroup, Some(size)) if size <= 8 => {
                    return Self::Broadcast {
                        threads: size,
                        keys: size,
                    };
                }
                (Variant::Portable, _) => {
                    return Self::Broadcast {
                        threads: 64,
                        keys: 8,
                    };
                }
                _ => {}
            }
        }
        let threads_x = match variant {
            Variant::Portable => 8,
            Variant::Subgroup => capabilities.lanes_within_subgroup(8),
        };
        let threads_y = 64 / threads_x;
        let rows = if value_dim <= 128 { 8 } else { 4 };
        // per step of the head dimension an invocation loads rows + 4 vectors; a long chunk saves barriers
        let (chunk, value_keys) = if capabilities.workgroup_memory >= 32 * 1024 {
            (32.min(head_dim.next_multiple_of(4)), 4 * threads_x)
        } else {
            (8.min(head_dim.next_multiple_of(4)), 4)
        };
        let value_keys = value_keys.min(if value_dim <= 64 { 32 } else { 8 });
        Self::Blocked {
            rows,
            threads_x,
            threads_y,
            chunk,
            value_keys,
        }
    }

    fn queries(self) -> u32 {
        match self {
            Self::Blocked {
                rows, threads_y, ..
            } => rows * threads_y,
            Self::Broadcast { threads, .. } => 4 * threads,
        }
    }

    fn describe(self) -> String {
        let queries = self.queries();
        match self {
            Self::Blocked {
                threads_x, rows, ..
            } => {
                format!(
                    "blocked, {queries} queries x {} keys, {rows} x 4 per thread",
                    4 * threads_x
                )
            }
            Self::Broadcast { keys, .. } => {
                format!("broadcast, {queries} queries x {keys} keys, 4 rows per lane")
            }
        }
    }

    fn kernel(self, variant: Variant) -> Kernel {
        let (name, parts): (_, &'static [&'static str]) = match (self, variant) {
            (Self::Blocked { .. }, Variant::Portable) => {
                ("attention", &[COMMON, PROBLEM, REDUCE_WORKGROUP, BLOCKED])
            }
            (Self::Blocked { .. }, Variant::Subgroup) => {
                ("attention", &[COMMON, PROBLEM, REDUCE_SUBGROUP, BLOCKED])
            }
            (Self::Broadcast { .. }, Variant::Portable) => (
                "attention_broadcast",
                &[COMMON, PROBLEM, BROADCAST_WORKGROUP, BROADCAST],
            ),
            (Self::Broadcast { .. }, Variant::Subgroup) => (
                "attention_broadcast",
                &[COMMON, PROBLEM, BROADCAST_SUBGROUP, BROADCAST],
            ),
        };
        Kernel {
            name,
            parts,
            params: Params::FIELDS,
            storage: &[
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Write,
                Access::Write,
            ],
            stepped: false,
        }
    }

    fn constants(self, head_dim: u32, value_dim: u32, causal: bool) -> Constants {
        let mut constants = vec![
            ("HEAD_DIM", Constant::U32(head_dim)),
            ("VALUE_DIM", Constant::U32(value_dim)),
            ("CAUSAL", Constant::Bool(causal)),
        ];
        match self {
            Self::Blocked {
                rows,
                threads_x,
                threads_y,
                chunk,
                value_keys,
            } => constants.extend([
                ("ROWS", Constant::U32(rows)),
                ("ROW_VECTORS", Constant::U32(rows / 4)),
                ("THREADS_X", Constant::U32(threads_x)),
                ("THREADS_Y", Constant::U32(threads_y)),
                ("CHUNK", Constant::U32(chunk)),
                (
                    "VALUE_VECTORS",
                    Constant::U32(value_dim.div_ceil(4 * threads_x)),
                ),
                ("VALUE_KEYS", Constant::U32(value_keys)),
            ]),
            Self::Broadcast { threads, keys } => constants.extend([
                ("WORKGROUP_SIZE", Constant::U32(threads)),
                ("KEYS", Constant::U32(keys)),
            ]),
        }
        constants
    }
}

/// More than any machine holds, and sums of a few such numbers fit 64 bits.
const MAX_ELEMENTS: u128 = 1 << 56;

/// More launches than any call needs whose tensors fit a machine: each but the last fills a binding.
const MAX_DISPATCHES: u64 = 1 << 16;

/// Strides and lengths of one tensor.
#[derive(Debug, Clone, Copy)]
struct Tensor {
    name: &'static str,
    batch: u64,
    head: u64,
    token: u64,
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
        if elements > MAX_ELEMENTS {
            return Err(Error::Limit {
                limit: "max_buffer_size",
                needed: u64::try_from(4 * elements).unwrap_or(u64::MAX),
                allowed: 4 * MAX_ELEMENTS as u64,
            });
        }
        Ok(())
    }

    /// The elements of `heads` of `batches`, from the first to the last.
    fn span(&self, batches: &Range<u64>, heads: &Range<u64>) -> Range<u64> {
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
            for (batches, kv_heads) in tensors.chunks(&shape, capabilities.storage_binding_size)? {
                dispatches.push(self.dispatch(
                    variant,
                    tile,
                    &shape,
                    &tensors,
                    batches,
                    kv_heads,
                    log_sum_exp,
                ));
            }
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

    #[expect(
        clippy::too_many_arguments,
        reason = "the pieces of one decision, made in plan"
    )]
    fn dispatch(
        &self,
        variant: Variant,
        tile: Tile,
        shape: &AttentionShape,
        tensors: &Tensors,
        batches: Range<u64>,
        kv_heads: Range<u64>,
        log_sum_exp: bool,
    ) -> Dispatch {
        let group_size = shape.num_heads / shape.num_kv_heads;
        let group = u64::from(group_size);
        let heads = kv_heads.start * group..kv_heads.end * group;
        let Tensors {
            query,
            key,
            value,
            output,
            log_sum_exp: lse,
        } = tensors;
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
        let scale = self
            .scale
            .map_or_else(|| f64::from(self.head_dim).sqrt().recip(), f64::from);
        // any offset beyond the lengths means the same as one at them
        let reach = i64::from(shape.q_len.max(shape.kv_len)) + 1;
        let offset = self.causal.offset(shape.q_len, shape.kv_len).unwrap_or(0);
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
        let value_dim = self.value_dim.unwrap_or(self.head_dim);
        Dispatch {
            kernel: tile.kernel(variant),
            constants: tile.constants(self.head_dim, value_dim, self.causal != Causal::No),
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

/// The batch rows and key/value heads of one dispatch.
type Chunk = (Range<u64>, Range<u64>);

/// The five tensors of a call.
struct Tensors {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
}

impl Tensors {
    fn new(head_dim: u32, value_dim: u32, shape: &AttentionShape) -> Self {
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

    fn check(&self, shape: &AttentionShape) -> Result<(), Error> {
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
    fn chunks(&self, shape: &AttentionShape, binding_size: u64) -> Result<Vec<Chunk>, Error> {
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

fn check_dispatches(count: u64) -> Result<(), Error> {
    if count > MAX_DISPATCHES {
        return Err(Error::Limit {
            limit: "launches of one call",
            needed: count,
            allowed: MAX_DISPATCHES,
        });
    }
    Ok(())
}

/// `0..count` in pieces of `each`.
fn ranges(count: u64, each: u64) -> impl Iterator<Item = Range<u64>> {
    (0..count.div_ceil(each)).map(move |i| i * each..((i + 1) * each).min(count))
}
