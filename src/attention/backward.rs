//! Gradients of attention: two kernels, for queries and for keys with values, and a reduction each for bias
//! and sinks.
//!
//! Source: Dao et al. 2022, *FlashAttention*, Alg. 4: weights are computed anew from `log_sum_exp`, so memory
//! beyond the gradients is two numbers per query row.

mod planner;
mod tile;

use planner::{Gradients, Planner};
use tile::{Blocked, Side, Tile};

use super::gathered::Gathered;
use super::problem::Problem;
use super::tensors::Tensors;
use super::{Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape};
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
            cpu: capabilities.cpu,
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
