//! Gradients of attention: two kernels, for queries and for keys with values, and a reduction each for bias
//! and sinks.
//!
//! Source: Dao et al. 2022, *FlashAttention*, Alg. 4: weights are computed anew from `log_sum_exp`, so memory
//! beyond the gradients is two numbers per query row.

mod tile;

use std::borrow::Cow;

use tile::{Blocked, Side, Tile, bias_kernel};

use super::gathered::{Blocks, Gathered};
use super::plan::groups;
use super::problem::{Params, Problem};
use super::tensors::{Chunk, Tensor, Tensors, check_injective};
use super::{Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape};
use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, fold_grid};
use crate::{Bound, Capabilities, Error, Plan, Variant};

/// The tensors of a backward call. Gradients are f32, with the shape and strides of what they belong to.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBackwardBuffers<'a> {
    /// Those of the forward pass: inputs, and `output` and `log_sum_exp` as it has written them; scratch of
    /// [`Attention::backward_scratch_size`] bytes.
    pub forward: AttentionBuffers<'a>,
    /// Like `output`, read.
    pub grad_output: wgpu::BufferSlice<'a>,
    /// Like `query`, written.
    pub grad_query: wgpu::BufferSlice<'a>,
    /// Like `key`, written.
    pub grad_key: wgpu::BufferSlice<'a>,
    /// Like `value`, written.
    pub grad_value: wgpu::BufferSlice<'a>,
    /// Like `bias`, summed over the axes that it lacks; written if given.
    pub grad_bias: Option<wgpu::BufferSlice<'a>>,
    /// `[num_heads]`, written if given.
    pub grad_sinks: Option<wgpu::BufferSlice<'a>>,
}

impl<'a> AttentionBackwardBuffers<'a> {
    fn given(&self) -> AttentionBackwardGiven {
        AttentionBackwardGiven {
            kv_lengths: self.forward.kv_lengths.is_some(),
            grad_bias: self.grad_bias.is_some(),
            grad_sinks: self.grad_sinks.is_some(),
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let mut slices = self.forward.slices();
        slices.extend([
            ("grad_output", self.grad_output),
            ("grad_query", self.grad_query),
            ("grad_key", self.grad_key),
            ("grad_value", self.grad_value),
        ]);
        let optional = [
            ("grad_bias", self.grad_bias),
            ("grad_sinks", self.grad_sinks),
        ];
        slices.extend(
            optional
                .iter()
                .filter_map(|&(name, slice)| Some((name, slice?))),
        );
        slices
    }
}

/// Which of the optional tensors a backward call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttentionBackwardGiven {
    /// There are lengths.
    pub kv_lengths: bool,
    /// The gradient of the bias is asked for.
    pub grad_bias: bool,
    /// The gradient of the sinks is asked for.
    pub grad_sinks: bool,
}

impl Attention {
    /// How a backward call will run; pure.
    ///
    /// # Errors
    /// As [`bind_backward`](Self::bind_backward), as far as they do not depend on the buffers.
    pub fn plan_backward(
        &self,
        shape: AttentionShape,
        given: AttentionBackwardGiven,
    ) -> Result<Plan, Error> {
        self.config
            .plan_backward(self.context.capabilities(), shape, given)
    }

    /// Bytes of scratch that [`bind_backward`](Self::bind_backward) needs at most for `shape`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a shape that has no meaning.
    pub fn backward_scratch_size(&self, shape: AttentionShape) -> Result<u64, Error> {
        let given = AttentionBackwardGiven {
            kv_lengths: true,
            ..Default::default()
        };
        Ok(self.plan_backward(shape, given)?.scratch_size)
    }

    /// Binds the tensors of a backward call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Buffer`], [`Error::Operand`], [`Error::Aliased`], [`Error::Limit`]: see there.
    pub fn bind_backward(
        &self,
        shape: AttentionShape,
        buffers: AttentionBackwardBuffers<'_>,
    ) -> Result<Bound, Error> {
        buffers.forward.check(&self.config, &shape)?;
        if buffers.forward.log_sum_exp.is_none() {
            return Err(Error::Operand {
                name: "log_sum_exp",
                problem: "is needed and missing",
            });
        }
        let plan = self.plan_backward(shape, buffers.given())?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }
}

impl AttentionConfig {
    /// How a backward call runs on a device with `capabilities`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Feature`], [`Error::Limit`]; [`Error::Operand`] for pages, and for the gradient
    /// of what the configuration does not have.
    pub fn plan_backward(
        &self,
        capabilities: &Capabilities,
        shape: AttentionShape,
        given: AttentionBackwardGiven,
    ) -> Result<Plan, Error> {
        // this pass has been seen on a CPU's matrices only, so it uses them where they are asked for
        let untried =
            |variant: &Variant| *variant == Variant::Cooperative && self.variant.is_none();
        let variants = self
            .variants(capabilities)
            .filter(|variant| !untried(variant));
        let chosen = Variant::choose(self.variant, variants, "attention")?;
        let forward_given = AttentionGiven {
            log_sum_exp: true,
            kv_lengths: given.kv_lengths,
        };
        self.check(&shape, forward_given)?;
        let refused = [
            (
                "block_table",
                shape.paged.is_some(),
                "pages have no backward pass",
            ),
            (
                "grad_bias",
                given.grad_bias && self.bias.is_none(),
                "there is no bias",
            ),
            (
                "grad_sinks",
                given.grad_sinks && !self.sinks,
                "there are no sinks",
            ),
        ];
        if let Some(&(name, _, problem)) = refused.iter().find(|(_, refused, _)| *refused) {
            return Err(Error::Operand { name, problem });
        }
        let tensors = Tensors::new(self, &shape);
        tensors.check(&shape)?;
        let gradients = Gradients::new(&tensors);
        gradients.check(&shape)?;

        let dims = [self.head_dim, self.value_dim()];
        let tiles = [Side::Query, Side::Key]
            .map(|side| Tile::choose(capabilities, chosen, side, dims, &shape));
        let bias_tile = Blocked::choose(capabilities, Side::Query, dims[0].max(dims[1]), &shape);
        // whether its gradient is asked for or not: scratch is the same
        let bias_too = self.bias.map(|_| bias_tile);
        let blocks = self.mask.then(|| Tile::blocks(tiles, bias_too));
        let gathered = Gathered::new(self, &shape, forward_given, blocks);
        let rows = match shape.packed {
            Some(packed) => u64::from(packed.query_tokens),
            None => u64::from(shape.batch) * u64::from(shape.q_len),
        };
        let statistics = 2 * rows * u64::from(shape.num_heads);
        let scratch = (gathered.len + statistics).next_multiple_of(64).max(64);
        let allowed = capabilities.storage_binding_size.min(1 << 31);
        if 4 * scratch > allowed {
            return Err(Error::Limit {
                limit: "max_storage_buffer_binding_size",
                needed: 4 * scratch,
                allowed,
            });
        }
        let problem = Problem {
            config: self,
            shape: &shape,
            given: forward_given,
            tensors: &tensors,
            gathered: &gathered,
        };
        let cooperative = tiles
            .iter()
            .any(|tile| matches!(tile, Tile::Cooperative(_)));
        let variant = match chosen {
            // heads too long for matrices
            Variant::Cooperative if !cooperative => Variant::Portable,
            chosen => chosen,
        };
        let planner = Planner {
            problem,
            gradients,
            tiles,
            bias_tile,
            blocks,
            scratch,
        };
        let mut dispatches = Vec::new();
        if shape.batch > 0 {
            gathered.dispatches(&shape, blocks, &mut dispatches);
            let bound_too = gradients.all();
            let chunks = tensors.chunks(&shape, &bound_too, capabilities.storage_binding_size)?;
            for chunk in &chunks {
                planner.chunk(chunk, given, &mut dispatches)?;
            }
            if given.grad_sinks {
                dispatches.push(planner.sinks()?);
            }
        }
        let [query, key] = tiles;
        // of seven products, four have the length of a query and three that of a value
        let dims = f64::from(self.head_dim) + f64::from(self.value_dim());
        let products = 4.0 * f64::from(self.head_dim) + 3.0 * f64::from(self.value_dim());
        Ok(Plan {
            variant,
            describe: format!(
                "gradients of queries {}, of keys {}",
                query.describe(),
                key.describe()
            ),
            dispatches,
            scratch_size: 4 * scratch,
            flops: self.flops(&shape) * products / dims,
            bytes: 2.0 * self.bytes(&shape),
        })
    }
}

/// Where the gradients lie: like their tensors, but f32.
#[derive(Debug, Clone, Copy)]
struct Gradients {
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Option<Tensor>,
}

impl Gradients {
    fn new(tensors: &Tensors) -> Self {
        Self {
            grad_output: tensors.output.gradient("grad_output"),
            query: tensors.query.gradient("grad_query"),
            key: tensors.key.gradient("grad_key"),
            value: tensors.value.gradient("grad_value"),
            bias: tensors.bias.map(|bias| bias.gradient("grad_bias")),
        }
    }

    fn all(&self) -> Vec<Tensor> {
        // keys and values have fewer heads than are asked about here, which makes the answer safe
        [self.grad_output, self.query]
            .into_iter()
            .chain(self.bias)
            .collect()
    }

    fn check(&self, shape: &AttentionShape) -> Result<(), Error> {
        let batches = if shape.packed.is_some() {
            1
        } else {
            shape.batch.into()
        };
        let (heads, kv_heads) = (shape.num_heads.into(), shape.num_kv_heads.into());
        check_injective(&self.query, "query_layout token stride", batches, heads)?;
        check_injective(&self.key, "key_layout token stride", batches, kv_heads)?;
        check_injective(&self.value, "value_layout token stride", batches, kv_heads)
    }
}

/// What the dispatches of a call depend on.
struct Planner<'a> {
    problem: Problem<'a>,
    gradients: Gradients,
    tiles: [Tile; 2],
    bias_tile: Blocked,
    blocks: Option<Blocks>,
    /// In words.
    scratch: u64,
}

impl Planner<'_> {
    fn chunk(
        &self,
        chunk: &Chunk,
        given: AttentionBackwardGiven,
        out: &mut Vec<Dispatch>,
    ) -> Result<(), Error> {
        let shape = self.problem.shape;
        if shape.q_len > 0 {
            out.push(self.statistics(chunk)?);
            out.push(self.side(chunk, Side::Query)?);
        }
        if shape.kv_len > 0 {
            out.push(self.side(chunk, Side::Key)?);
        }
        if given.grad_bias && shape.q_len > 0 && shape.kv_len > 0 {
            out.push(self.bias(chunk)?);
        }
        Ok(())
    }

    /// The parameters of all backward kernels, and the operands that they begin with.
    fn params(&self, chunk: &Chunk) -> (Params, Vec<Operand>) {
        let Problem {
            tensors, gathered, ..
        } = self.problem;
        let (params, inputs) = self.problem.params(chunk);
        let heads = self.problem.heads(chunk);
        let (grad_output, output_first) = self.gradients.grad_output.operand(&chunk.0, &heads);
        let params = Params {
            output_first,
            output_batch: tensors.output.batch as u32,
            output_head: tensors.output.head as u32,
            output_token: tensors.output.token as u32,
            log_sum_exp_batch: tensors.log_sum_exp.batch as u32,
            log_sum_exp_head: tensors.log_sum_exp.head as u32,
            statistics_at: gathered.len as u32,
            ..params
        };
        let operands = vec![
            inputs.query,
            inputs.key,
            inputs.value,
            inputs.bias,
            Gathered::operand(self.scratch),
            grad_output,
        ];
        (params, operands)
    }

    fn statistics(&self, chunk: &Chunk) -> Result<Dispatch, Error> {
        let Problem { shape, tensors, .. } = self.problem;
        let heads = self.problem.heads(chunk);
        let (params, mut operands) = self.params(chunk);
        let (output, _) = tensors.output.operand(&chunk.0, &heads);
        let (log_sum_exp, log_sum_exp_first) = tensors.log_sum_exp.operand(&chunk.0, &heads);
        let num_tiles = shape.q_len.div_ceil(64);
        let batches = chunk.0.end - chunk.0.start;
        let num_groups = groups(u64::from(num_tiles) * (heads.end - heads.start), batches)?;
        let params = Params {
            num_tiles,
            num_groups,
            log_sum_exp_first,
            ..params
        };
        let mut constants = self.problem.constants(None);
        constants.push(("FOLDED", Constant::Bool(false)));
        Ok(Dispatch {
            kernel: Kernel {
                name: "attention_backward_statistics",
                enables: &[],
                parts: Cow::Borrowed(&[
                    COMMON,
                    include_str!("../../shaders/attention_problem.wgsl"),
                    include_str!("../../shaders/attention_backward_statistics.wgsl"),
                ]),
                params: Params::FIELDS,
                storage: &[Access::Read, Access::Read, Access::Read, Access::Write],
                stepped: false,
            },
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                output,
                operands.swap_remove(5),
                log_sum_exp,
                Gathered::operand(self.scratch),
            ],
            grid: fold_grid(num_groups.into()),
            steps: 1,
        })
    }

    fn side(&self, chunk: &Chunk, side: Side) -> Result<Dispatch, Error> {
        let shape = self.problem.shape;
        let (batches, kv_heads) = chunk;
        let (tile, len, heads) = match side {
            Side::Query => (self.tiles[0], shape.q_len, self.problem.heads(chunk)),
            Side::Key => (self.tiles[1], shape.kv_len, kv_heads.clone()),
        };
        let (params, mut operands) = self.params(chunk);
        let own = |tensor: &Tensor| tensor.operand(batches, &heads);
        let (gradient, gradient_first) = match side {
            Side::Query => own(&self.gradients.query),
            Side::Key => own(&self.gradients.key),
        };
        let (second_gradient, second_gradient_first) = match side {
            Side::Query => (Operand::Unused, 0),
            Side::Key => own(&self.gradients.value),
        };
        let num_tiles = len.div_ceil(tile.row_tile());
        let num_heads = heads.end - heads.start;
        let num_groups = groups(
            u64::from(num_tiles) * num_heads,
            batches.end - batches.start,
        )?;
        let params = Params {
            num_tiles,
            num_groups,
            gradient_first,
            second_gradient_first,
            ..params
        };
        operands.extend([gradient, second_gradient]);
        let mut constants = self.problem.constants(self.blocks);
        let config = self.problem.config;
        constants.extend(tile.constants(side, [config.head_dim, config.value_dim()]));
        Ok(Dispatch {
            kernel: tile.kernel(side, &self.problem),
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands,
            grid: fold_grid(num_groups.into()),
            steps: 1,
        })
    }

    fn bias(&self, chunk: &Chunk) -> Result<Dispatch, Error> {
        let shape = self.problem.shape;
        let axes = shape.bias_axes;
        let heads = self.problem.heads(chunk);
        let tile = self.bias_tile;
        let (params, mut operands) = self.params(chunk);
        let (gradient, gradient_first) = match &self.gradients.bias {
            Some(bias) => bias.operand(&chunk.0, &heads),
            None => (Operand::Unused, 0),
        };
        let count = |has: bool, len: u64| if has { len } else { 1 };
        let tiles = count(axes.query, shape.q_len.div_ceil(tile.row_tile()).into())
            * count(axes.key, shape.kv_len.div_ceil(tile.other_tile()).into());
        let problems = count(axes.batch, chunk.0.end - chunk.0.start)
            * count(axes.head, heads.end - heads.start);
        let num_groups = groups(tiles, problems)?;
        let params = Params {
            num_groups,
            gradient_first,
            ..params
        };
        operands.extend([gradient, Operand::Unused]);
        // a chunk that is not the first to see an element adds to it
        let add = !axes.batch && chunk.0.start > 0 || !axes.head && heads.start > 0;
        let mut constants = self.problem.constants(self.blocks);
        constants.extend(tile.constants());
        constants.extend([
            ("ROWS_ARE_KEYS", Constant::Bool(false)),
            ("BIAS_BATCH", Constant::Bool(axes.batch)),
            ("BIAS_HEADS", Constant::Bool(axes.head)),
            ("BIAS_QUERIES", Constant::Bool(axes.query)),
            ("BIAS_KEYS", Constant::Bool(axes.key)),
            ("ADD", Constant::Bool(add)),
        ]);
        Ok(Dispatch {
            kernel: bias_kernel(&self.problem),
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands,
            grid: fold_grid(num_groups.into()),
            steps: 1,
        })
    }

    /// Of all heads and batch rows at once: it reads nothing but scratch.
    fn sinks(&self) -> Result<Dispatch, Error> {
        let shape = self.problem.shape;
        let everything = (0..shape.batch.into(), 0..shape.num_kv_heads.into());
        let (params, _) = self.params(&everything);
        let params = Params {
            num_groups: shape.num_heads,
            ..params
        };
        let mut constants = self.problem.constants(None);
        constants.push(("FOLDED", Constant::Bool(false)));
        Ok(Dispatch {
            kernel: Kernel {
                name: "attention_backward_sinks",
                enables: &[],
                parts: Cow::Borrowed(&[
                    COMMON,
                    include_str!("../../shaders/attention_problem.wgsl"),
                    include_str!("../../shaders/attention_backward_sinks.wgsl"),
                ]),
                params: Params::FIELDS,
                storage: &[Access::Read, Access::Write],
                stepped: false,
            },
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                Gathered::operand(self.scratch),
                Operand::whole("grad_sinks", 4 * u64::from(shape.num_heads)),
            ],
            grid: fold_grid(shape.num_heads.into()),
            steps: 1,
        })
    }
}
