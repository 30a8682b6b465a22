//! Gradients of attention: two kernels, for queries and for keys with values, and a reduction each for bias
//! and sinks.
//!
//! Source: Dao et al. 2022, *FlashAttention*, Alg. 4: weights are computed anew from `log_sum_exp`, so memory
//! beyond the gradients is two numbers per query row.

use std::borrow::Cow;

use super::gathered::Gathered;
use super::plan::groups;
use super::problem::{Params, Problem};
use super::tensors::{Chunk, Tensor, Tensors, check_injective};
use super::{Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape};
use crate::kernel::{Access, COMMON, Constant, Constants, Dispatch, Kernel, Operand, fold_grid};
use crate::{Bound, Capabilities, Error, Plan, Variant};

const LANE: &str = include_str!("../../shaders/attention_lane.wgsl");
const BINDINGS: &str = include_str!("../../shaders/attention_backward_bindings.wgsl");
const PRODUCTS: &str = include_str!("../../shaders/attention_backward_products.wgsl");
const QUERY: &str = include_str!("../../shaders/attention_backward_query.wgsl");
const KEY: &str = include_str!("../../shaders/attention_backward_key.wgsl");
const BACKWARD: &str = include_str!("../../shaders/attention_backward.wgsl");
const BIAS: &str = include_str!("../../shaders/attention_backward_bias.wgsl");

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

/// Which side's gradients a kernel computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Query,
    Key,
}

/// The shape of a workgroup's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    rows: u32,
    threads_x: u32,
    threads_y: u32,
    chunk: u32,
    staged_others: u32,
    vectors: u32,
}

impl Tile {
    /// An invocation keeps `rows` x `vectors` vectors of one gradient, of keys of two: about 100 floats, and as
    /// many for the pairs of the moment.
    fn choose(capabilities: &Capabilities, side: Side, dims: u32, shape: &AttentionShape) -> Self {
        if let Some(tile) = Self::large(capabilities, side, dims, shape) {
            return tile;
        }
        let threads_x = if dims <= 128 { 8 } else { 16 };
        let threads_y = 64 / threads_x;
        let vectors = dims.div_ceil(4 * threads_x);
        let rows = match (side, vectors) {
            (Side::Query, 0..=2) => 8,
            (Side::Query, _) | (Side::Key, 0..=4) => 4,
            (Side::Key, _) => 2,
        };
        let (row_tile, other_tile) = (rows * threads_y, 4 * threads_x);
        // beside the pairs, a vector of 16 bytes for every four others of a row
        let small = 1024;
        let room = (capabilities.workgroup_memory - small - 16 * row_tile * threads_x) / 16;
        let power_of_two = |most: u32| 1 << most.max(1).ilog2();
        let chunk_vectors = (room / (row_tile + other_tile)).saturating_sub(1).min(8);
        let staged = room / (vectors * threads_x);
        Self {
            rows,
            threads_x,
            threads_y,
            chunk: 4 * power_of_two(chunk_vectors),
            staged_others: power_of_two(staged.min(other_tile)),
            vectors,
        }
    }

    /// Where there are enough rows to fill a large GPU. On an H100, 16 heads x 4096 tokens, head_dim 64, forward and
    /// backward take 26.1 ms instead of 28.1 with the larger tile for queries, 24.2 ms with that for keys.
    fn large(
        capabilities: &Capabilities,
        side: Side,
        dims: u32,
        shape: &AttentionShape,
    ) -> Option<Self> {
        const MANY_GROUPS: u64 = 256;
        let (tile, len, heads) = match side {
            Side::Query => (
                Self {
                    rows: 16,
                    threads_x: 16,
                    threads_y: 8,
                    chunk: 16,
                    staged_others: 32,
                    vectors: 1,
                },
                shape.q_len,
                shape.num_heads,
            ),
            Side::Key => (
                Self {
                    rows: 4,
                    threads_x: 8,
                    threads_y: 16,
                    chunk: 32,
                    staged_others: 32,
                    vectors: 2,
                },
                shape.kv_len,
                shape.num_kv_heads,
            ),
        };
        let tiles = u64::from(len.div_ceil(tile.row_tile()));
        let groups = tiles * u64::from(shape.batch) * u64::from(heads);
        let fits = !capabilities.cpu && capabilities.workgroup_memory >= 48 * 1024 && dims <= 64;
        (fits && groups >= MANY_GROUPS).then_some(tile)
    }

    fn row_tile(self) -> u32 {
        self.rows * self.threads_y
    }

    fn other_tile(self) -> u32 {
        4 * self.threads_x
    }

    fn describe(self) -> String {
        format!("{} x {}", self.row_tile(), self.other_tile())
    }

    fn constants(self) -> Constants {
        vec![
            ("FOLDED", Constant::Bool(false)),
            ("ROWS", Constant::U32(self.rows)),
            ("THREADS_X", Constant::U32(self.threads_x)),
            ("THREADS_Y", Constant::U32(self.threads_y)),
            ("CHUNK", Constant::U32(self.chunk)),
            ("STAGED_OTHERS", Constant::U32(self.staged_others)),
            ("VECTORS", Constant::U32(self.vectors)),
        ]
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
        let variant = match Variant::choose(self.variant, self.variants(capabilities), "attention")?
        {
            // its kernels do without matrix units
            Variant::Cooperative => Variant::Portable,
            variant => variant,
        };
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

        let gathered = Gathered::new(self, &shape, forward_given, None);
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
        let dims = self.head_dim.max(self.value_dim());
        let problem = Problem {
            config: self,
            shape: &shape,
            given: forward_given,
            tensors: &tensors,
            gathered: &gathered,
        };
        let tiles =
            [Side::Query, Side::Key].map(|side| Tile::choose(capabilities, side, dims, &shape));
        let planner = Planner {
            problem,
            gradients,
            tiles,
            scratch,
        };
        let mut dispatches = Vec::new();
        if shape.batch > 0 {
            gathered.dispatches(&shape, None, &mut dispatches);
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
        let (tile, part, len, heads) = match side {
            Side::Query => (self.tiles[0], QUERY, shape.q_len, self.problem.heads(chunk)),
            Side::Key => (self.tiles[1], KEY, shape.kv_len, kv_heads.clone()),
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
        let mut constants = self.problem.constants(None);
        constants.extend(tile.constants());
        constants.push(("ROWS_ARE_KEYS", Constant::Bool(side == Side::Key)));
        Ok(Dispatch {
            kernel: Kernel {
                name: "attention_backward",
                enables: &[],
                parts: self.problem.parts(
                    self.problem.is_aligned(),
                    [LANE, BINDINGS, PRODUCTS, part, BACKWARD],
                ),
                params: Params::FIELDS,
                storage: &[
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Write,
                    Access::Write,
                ],
                stepped: false,
            },
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
        let tile = self.tiles[0];
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
        let mut constants = self.problem.constants(None);
        constants.extend(tile.constants());
        constants.extend([
            ("BIAS_BATCH", Constant::Bool(axes.batch)),
            ("BIAS_HEADS", Constant::Bool(axes.head)),
            ("BIAS_QUERIES", Constant::Bool(axes.query)),
            ("BIAS_KEYS", Constant::Bool(axes.key)),
            ("ADD", Constant::Bool(add)),
        ]);
        Ok(Dispatch {
            kernel: Kernel {
                name: "attention_backward_bias",
                enables: &[],
                parts: self.problem.parts(
                    self.problem.is_aligned(),
                    [LANE, BINDINGS, PRODUCTS, QUERY, BIAS],
                ),
                params: Params::FIELDS,
                storage: &[
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Read,
                    Access::Write,
                    Access::Write,
                ],
                stepped: false,
            },
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
