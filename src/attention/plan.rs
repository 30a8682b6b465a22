//! Which variant, chunks and grids a call of attention runs with.

use super::gathered::{Blocks, Gathered};
use super::merge;
use super::problem::{Params, Problem, WRITE_LOG_SUM_EXP};
use super::tensors::{Chunk, Tensors};
use super::tile::Tile;
use super::{AttentionConfig, AttentionGiven, AttentionShape, Causal};
use crate::kernel::{Constant, Dispatch, Operand, fold_grid};
use crate::plan::check_elements;
use crate::{Capabilities, ElementType, Error, Plan, Variant};

const MAX_HEAD_DIM: u32 = 512;

impl AttentionConfig {
    /// The variants that a device can run, best first.
    pub fn variants(&self, capabilities: &Capabilities) -> impl Iterator<Item = Variant> + use<> {
        // rounds the weights to f16: chosen for tensors of f16, for others only if it is asked for
        let wanted = self.element == ElementType::F16 || self.variant == Some(Variant::Cooperative);
        let dims = [self.head_dim, self.value_dim()];
        let able = wanted && Tile::cooperative(capabilities, dims).is_some();
        let first = able && !capabilities.cpu;
        let cooperative = |here: bool| here.then_some(Variant::Cooperative);
        cooperative(first)
            .into_iter()
            .chain(Variant::available(capabilities))
            .chain(cooperative(able && !first))
    }

    /// How a call runs on a device with `capabilities`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Feature`], [`Error::Limit`].
    pub fn plan(
        &self,
        capabilities: &Capabilities,
        shape: AttentionShape,
        given: AttentionGiven,
    ) -> Result<Plan, Error> {
        let variant = Variant::choose(self.variant, self.variants(capabilities), "attention")?;
        self.check(&shape, given)?;
        let tensors = Tensors::new(self, &shape);
        tensors.check(&shape)?;

        let dims = [self.head_dim, self.value_dim()];
        let tile = Tile::choose(capabilities, variant, dims, &shape);
        let chunks = tensors.chunks(&shape, &[], capabilities.storage_binding_size)?;
        let split = Split::choose(capabilities, tile, self, &shape, chunks.len());
        // the rows of a folded tile belong to several heads, each with blocks of its own
        let blocks = (self.mask && !split.folded).then(|| tile.blocks());
        let gathered = Gathered::new(self, &shape, given, blocks);
        gathered.check(capabilities)?;
        let mut dispatches = Vec::new();
        if shape.batch > 0 && shape.q_len > 0 {
            gathered.dispatches(&shape, blocks, &mut dispatches);
            let problem = Problem {
                config: self,
                shape: &shape,
                given,
                tensors: &tensors,
                gathered: &gathered,
                cpu: capabilities.cpu,
            };
            let planner = Planner {
                problem,
                variant,
                tile,
                blocks,
                split,
            };
            for chunk in &chunks {
                dispatches.push(planner.dispatch(chunk)?);
            }
            if split.count > 1 {
                dispatches.push(planner.merge());
            }
        }
        Ok(Plan {
            variant,
            describe: split.describe(tile),
            dispatches,
            scratch_size: 4 * (gathered.len + split.words(self, &shape)),
            flops: self.flops(&shape),
            bytes: self.bytes(&shape),
        })
    }

    /// Of the two products of the forward pass, over the pairs that causal mask and windows allow.
    pub(super) fn flops(&self, shape: &AttentionShape) -> f64 {
        let heads = f64::from(shape.batch) * f64::from(shape.num_heads);
        let dims = f64::from(self.head_dim) + f64::from(self.value_dim());
        2.0 * heads * dims * self.pairs(shape.q_len, shape.kv_len)
    }

    /// Each tensor once.
    pub(super) fn bytes(&self, shape: &AttentionShape) -> f64 {
        let q_rows = f64::from(shape.batch) * f64::from(shape.num_heads) * f64::from(shape.q_len);
        let kv_rows =
            f64::from(shape.batch) * f64::from(shape.num_kv_heads) * f64::from(shape.kv_len);
        let (head_dim, value_dim) = (f64::from(self.head_dim), f64::from(self.value_dim()));
        let inputs = head_dim * q_rows + (head_dim + value_dim) * kv_rows;
        self.element.size() as f64 * inputs + 4.0 * (value_dim + 1.0) * q_rows
    }

    /// Query-key pairs of a head that causal mask and windows allow.
    fn pairs(&self, q_len: u32, kv_len: u32) -> f64 {
        let offset = self.causal.offset(q_len, kv_len).unwrap_or(0);
        let right = match self.causal {
            Causal::No => self.window_right.map(i64::from),
            _ => Some(0),
        };
        let up_to = |bound: Option<i64>| match bound {
            None => f64::from(q_len) * f64::from(kv_len),
            Some(bound) => pairs_up_to(bound, q_len.into(), kv_len.into()),
        };
        let below = self
            .window_left
            .map_or(0.0, |left| up_to(Some(offset - i64::from(left) - 1)));
        (up_to(right.map(|right| offset + right)) - below).max(0.0)
    }

    pub(super) fn check(&self, shape: &AttentionShape, given: AttentionGiven) -> Result<(), Error> {
        for (name, dim) in [("head_dim", self.head_dim), ("value_dim", self.value_dim())] {
            if !(1..=MAX_HEAD_DIM).contains(&dim) {
                return Err(Error::shape(name, dim, format!("1 to {MAX_HEAD_DIM}")));
            }
        }
        if self
            .softcap
            .is_some_and(|cap| !(cap > 0.0 && cap.is_finite()))
        {
            return Err(Error::shape("softcap", 0, "a finite number above 0"));
        }
        if self.dropout.is_some_and(|p| !(0.0..1.0).contains(&p)) {
            return Err(Error::shape(
                "dropout",
                1,
                "a probability from 0 to below 1",
            ));
        }
        if shape.num_heads == 0 {
            return Err(Error::shape("num_heads", 0, "at least 1"));
        }
        if shape.num_kv_heads == 0 || !shape.num_heads.is_multiple_of(shape.num_kv_heads) {
            let expected = format!("a divisor of num_heads, {}", shape.num_heads);
            return Err(Error::shape("num_kv_heads", shape.num_kv_heads, expected));
        }
        for (name, len) in [("q_len", shape.q_len), ("kv_len", shape.kv_len)] {
            if len >= 1 << 28 {
                return Err(Error::shape(name, len, "less than 2^28"));
            }
        }
        if self.mask || self.bias.is_some() {
            let pairs = [shape.batch, shape.num_heads, shape.q_len, shape.kv_len];
            check_elements(pairs.iter().map(|&len| u128::from(len)).product())?;
        }
        if let Some(packed) = shape.packed {
            if shape.paged.is_some() {
                let problem = "packed sequences have no pages";
                return Err(Error::Operand {
                    name: "block_table",
                    problem,
                });
            }
            for (name, len, tokens) in [
                ("q_len", shape.q_len, packed.query_tokens),
                ("kv_len", shape.kv_len, packed.key_tokens),
            ] {
                if len > tokens {
                    let expected = format!("the longest of the packed sequences, at most {tokens}");
                    return Err(Error::shape(name, len, expected));
                }
            }
        }
        if let Some(paged) = shape.paged {
            if paged.block_size == 0 || paged.num_blocks == 0 {
                return Err(Error::shape(
                    "block_size and num_blocks",
                    0,
                    "at least 1 each",
                ));
            }
            let most = u64::from(paged.max_blocks) * u64::from(paged.block_size);
            if u64::from(shape.kv_len) > most {
                let expected = format!("at most max_blocks * block_size = {most}");
                return Err(Error::shape("kv_len", shape.kv_len, expected));
            }
            if !given.kv_lengths {
                let problem = "is needed with a block table";
                return Err(Error::Operand {
                    name: "kv_lengths",
                    problem,
                });
            }
        }
        Ok(())
    }
}

/// Pairs with `j <= i + bound`.
fn pairs_up_to(bound: i64, q_len: i64, kv_len: i64) -> f64 {
    // row i has i + bound + 1 of them: none before row `empty`, all from row `full` on
    let empty = (-bound).clamp(0, q_len);
    let full = (kv_len - bound - 1).clamp(empty, q_len);
    let (first, last) = (empty + bound + 1, full + bound);
    let partly = (full - empty) as f64 * (first + last) as f64 / 2.0;
    partly + (q_len - full) as f64 * kv_len as f64
}

/// How few query rows against many keys are spread over a device: query heads that share keys are rows of one
/// tile, so that keys are read once, and the keys are split, so that there are enough workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Split {
    folded: bool,
    count: u32,
    /// Of each split.
    keys: u32,
}

impl Split {
    fn choose(
        capabilities: &Capabilities,
        tile: Tile,
        config: &AttentionConfig,
        shape: &AttentionShape,
        num_chunks: usize,
    ) -> Self {
        let none = Self {
            folded: false,
            count: 1,
            keys: 1 << 30,
        };
        if shape.packed.is_some() || num_chunks != 1 || shape.q_len == 0 {
            return none;
        }
        let group = shape.group_size();
        let folded =
            group > 1 && u64::from(shape.q_len) * u64::from(group) <= tile.queries().into();
        let heads = if folded {
            shape.num_kv_heads
        } else {
            shape.num_heads
        };
        if shape.q_len > tile.queries() {
            return none;
        }
        let groups = u64::from(heads) * u64::from(shape.batch);
        // a CPU's cores take some each; so do a large GPU's, whose loads wait for memory in decoding. The keys
        // are the fewest that are worth a workgroup of their own
        let (wanted, fewest_keys) = match tile {
            Tile::Decode { .. } => (512, 256),
            _ if capabilities.cpu => (8, 256),
            _ => (256, 256),
        };
        let most = u64::from(shape.kv_len / fewest_keys).max(1);
        let count = (wanted / groups.max(1)).clamp(1, most) as u32;
        let own = tile.blocks().keys;
        let keys = shape.kv_len.div_ceil(count).max(1).next_multiple_of(own);
        let count = shape.kv_len.div_ceil(keys).max(1);
        let rows = u64::from(shape.batch) * u64::from(shape.num_heads) * u64::from(shape.q_len);
        let partial = rows * u64::from(config.value_dim() + 1) * u64::from(count);
        if 4 * partial > capabilities.storage_binding_size.min(1 << 31) {
            return Self { folded, ..none };
        }
        match count {
            1 => Self { folded, ..none },
            _ => Self {
                folded,
                count,
                keys,
            },
        }
    }

    fn rows(shape: &AttentionShape) -> u64 {
        u64::from(shape.batch) * u64::from(shape.num_heads) * u64::from(shape.q_len)
    }

    /// Words of the partial outputs, which come first, and of all partial results.
    fn outputs(self, config: &AttentionConfig, shape: &AttentionShape) -> u64 {
        let outputs = Self::rows(shape) * u64::from(config.value_dim()) * u64::from(self.count);
        outputs.next_multiple_of(64)
    }

    fn words(self, config: &AttentionConfig, shape: &AttentionShape) -> u64 {
        match self.count {
            1 => 0,
            count => {
                let sums = Self::rows(shape) * u64::from(count);
                (self.outputs(config, shape) + sums).next_multiple_of(64)
            }
        }
    }

    fn describe(self, tile: Tile) -> String {
        let heads = if self.folded { ", heads folded" } else { "" };
        match self.count {
            1 => format!("{}{heads}", tile.describe()),
            count => format!("{}{heads}, {count} splits", tile.describe()),
        }
    }
}

/// What the dispatches of a call depend on.
struct Planner<'a> {
    problem: Problem<'a>,
    variant: Variant,
    tile: Tile,
    blocks: Option<Blocks>,
    split: Split,
}

impl Planner<'_> {
    /// One launch over some of the batch rows and heads.
    fn dispatch(&self, chunk: &Chunk) -> Result<Dispatch, Error> {
        let Self {
            problem,
            variant,
            tile,
            blocks,
            split,
        } = self;
        let Problem {
            config,
            shape,
            gathered,
            ..
        } = *problem;
        let heads = problem.heads(chunk);
        let (params, inputs) = problem.params(chunk);
        let (num_tiles, tile_heads) = match split.folded {
            true => (1, chunk.1.end - chunk.1.start),
            false => (
                shape.q_len.div_ceil(tile.queries()),
                heads.end - heads.start,
            ),
        };
        let batches = chunk.0.end - chunk.0.start;
        let each = u64::from(num_tiles) * u64::from(split.count);
        let num_groups = groups(each * tile_heads, batches)?;
        let (params, [output, log_sum_exp]) = self.results(chunk, params);
        let params = Params {
            num_tiles,
            num_splits: split.count,
            split_keys: split.keys,
            num_groups,
            ..params
        };
        let mut constants = problem.constants(*blocks);
        constants.push(("FOLDED", Constant::Bool(split.folded)));
        constants.extend(tile.constants(config.head_dim, config.value_dim()));
        Ok(Dispatch {
            kernel: tile.kernel(*variant, problem),
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                inputs.query,
                inputs.key,
                inputs.value,
                inputs.bias,
                Gathered::operand(gathered.len),
                output,
                log_sum_exp,
            ],
            grid: fold_grid(num_groups.into()),
            steps: 1,
        })
    }
}

impl Planner<'_> {
    /// Where a dispatch writes: to the tensors of the call, or partial results to scratch.
    fn results(&self, chunk: &Chunk, params: Params) -> (Params, [Operand; 2]) {
        let Problem {
            config,
            shape,
            given,
            tensors,
            ..
        } = self.problem;
        let heads = self.problem.heads(chunk);
        if self.split.count > 1 {
            let rows = Split::rows(shape);
            let head = u64::from(shape.q_len) * u64::from(config.value_dim());
            let params = Params {
                flags: params.flags | WRITE_LOG_SUM_EXP,
                output_batch: (head * u64::from(shape.num_heads)) as u32,
                output_head: head as u32,
                output_token: config.value_dim(),
                output_split: (rows * u64::from(config.value_dim())) as u32,
                log_sum_exp_batch: shape.num_heads * shape.q_len,
                log_sum_exp_head: shape.q_len,
                log_sum_exp_split: rows as u32,
                ..params
            };
            let [(output, output_first), (sums, log_sum_exp_first)] = self.partial_results();
            let params = Params {
                output_first,
                log_sum_exp_first,
                ..params
            };
            return (params, [output, sums]);
        }
        let (output, output_first) = tensors.output.operand(&chunk.0, &heads);
        let (log_sum_exp, log_sum_exp_first) = match given.log_sum_exp {
            true => tensors.log_sum_exp.operand(&chunk.0, &heads),
            false => (Operand::Unused, 0),
        };
        let params = Params {
            output_first,
            output_batch: tensors.output.batch as u32,
            output_head: tensors.output.head as u32,
            output_token: tensors.output.token as u32,
            log_sum_exp_first,
            log_sum_exp_batch: tensors.log_sum_exp.batch as u32,
            log_sum_exp_head: tensors.log_sum_exp.head as u32,
            ..params
        };
        (params, [output, log_sum_exp])
    }

    /// Partial outputs and partial log_sum_exps in scratch.
    fn partial_results(&self) -> [(Operand, u32); 2] {
        let Problem {
            config,
            shape,
            gathered,
            ..
        } = self.problem;
        let first = gathered.len;
        let sums = first + self.split.outputs(config, shape);
        let end = first + self.split.words(config, shape);
        [
            Operand::elements("scratch", first..sums),
            Operand::elements("scratch", sums..end),
        ]
    }

    /// The splits of the only chunk, in their order.
    fn merge(&self) -> Dispatch {
        let Problem {
            config,
            shape,
            given,
            tensors,
            ..
        } = self.problem;
        let all: Chunk = (0..shape.batch.into(), 0..shape.num_heads.into());
        let (output, output_first) = tensors.output.operand(&all.0, &all.1);
        let (log_sum_exp, log_sum_exp_first) = match given.log_sum_exp {
            true => tensors.log_sum_exp.operand(&all.0, &all.1),
            false => (Operand::Unused, 0),
        };
        let [(parts, parts_first), (sums, parts_log_sum_exp_first)] = self.partial_results();
        let rows = Split::rows(shape);
        let params = merge::Params {
            num_rows: rows as u32,
            num_elements: (rows * u64::from(config.value_dim())) as u32,
            num_heads: shape.num_heads,
            q_len: shape.q_len,
            parts_first,
            parts_log_sum_exp_first,
            output_first,
            output_batch: tensors.output.batch as u32,
            output_head: tensors.output.head as u32,
            output_token: tensors.output.token as u32,
            log_sum_exp_first,
            write_log_sum_exp: given.log_sum_exp.into(),
        };
        let operands = vec![
            parts,
            sums,
            Operand::Unused,
            Operand::Unused,
            output,
            log_sum_exp,
        ];
        merge::dispatch(
            &params,
            config.value_dim(),
            self.split.count,
            false,
            operands,
        )
    }
}

/// Workgroups of a dispatch, which the kernels count in 32 bits.
pub(super) fn groups(each: u64, times: u64) -> Result<u32, Error> {
    let needed = each.saturating_mul(times);
    u32::try_from(needed).map_err(|_| Error::Limit {
        limit: "workgroups of one dispatch",
        needed,
        allowed: u32::MAX.into(),
    })
}
