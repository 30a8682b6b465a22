//! Backward through time: from the gradients of a call's outputs to those of everything that went in.
//!
//! # Semantics
//! - The forward pass is bound with a [`reserve`](super::RecurrentBuffers::reserve), in which it leaves what went into the
//!   activations and the states before each step; the same configuration, shape and device must go back.
//! - A reverse sweep, in the tiers of the forward pass, gives the gradients of the gates of all steps. What they make
//!   of weights, biases and input are products and sums in a fixed order outside of the loop: same device, same
//!   inputs, same bits.
//! - Past a sequence's own length all gradients are 0, whatever arrives there; a sequence of length 0 hands the
//!   gradient of its last state on to that of its initial one.
//! - Where `clip` bounds what goes into an activation, the gradient is 0 outside the bounds.
//! - With `checkpoint_every`, the forward pass leaves, of each layer, only the state in front of every so many steps and
//!   the output of inner layers. The backward pass goes from the last of these segments to the first and runs the steps
//!   of each again, from the input on, in the kernels of the forward pass. So the gradients are the same bits as
//!   without, but for those of weights, biases and peepholes: these are sums over the tokens of a segment first. They
//!   are the same bits, too, where without checkpoints a chunk has as many steps; else they differ by rounding.
//! - With `truncate`, no gradient passes back over every so many steps of a sequence.
//! - All gradients are written, none is added to what was there.
//!
//! Source: Werbos 1990, Backpropagation through time.

mod pack;
mod planner;
mod products;
mod scratch;
mod sums;
mod sweep;
mod tile;

use super::pack::wanted;
use super::tile::Tile as ForwardTile;
use super::{Given, Recurrent, RecurrentConfig, RecurrentShape, Tier, steps};
use crate::kernel::Dispatch;
use crate::plan::check_dispatches;
use crate::{Bound, Capabilities, ElementType, Error, Plan, Variant};
use planner::{Numbered, Planner};
use scratch::BackwardScratch;
use tile::{Kept, Tile};

/// The gradients of the weights of one direction of one layer, in PyTorch's layout, f32 however these are stored;
/// written.
#[derive(Debug, Clone, Copy)]
pub struct RecurrentGradients<'a> {
    /// `[num_gates * hidden_size, input_size of the layer]`
    pub weight_ih: wgpu::BufferSlice<'a>,
    /// `[num_gates * hidden_size, state_size]`
    pub weight_hh: wgpu::BufferSlice<'a>,
    /// Of `bias_ih` and `bias_hh`, `[num_gates * hidden_size]` each; for all layers and directions or for none.
    pub bias: Option<(wgpu::BufferSlice<'a>, wgpu::BufferSlice<'a>)>,
    /// `[3 * hidden_size]`, exactly if the configuration has peepholes.
    pub peephole: Option<wgpu::BufferSlice<'a>>,
    /// `[proj_size, hidden_size]`, exactly if the configuration has a projection.
    pub weight_hr: Option<wgpu::BufferSlice<'a>>,
}

/// The tensors of a backward pass, f32 but for `input` and `lengths`. Gradients are f32 whatever they belong to, with
/// its shape.
///
/// The gradients that arrive count as zeros if absent; those that are not wanted may be left out.
#[derive(Debug, Clone, Copy)]
pub struct RecurrentBackwardBuffers<'a> {
    /// As in the forward pass; needed for the gradients of weights and to run steps again.
    pub input: wgpu::BufferSlice<'a>,
    /// As in the forward pass.
    pub weights: wgpu::BufferSlice<'a>,
    /// What the forward pass has left; read.
    pub reserve: wgpu::BufferSlice<'a>,
    /// As in the forward pass.
    pub lengths: Option<wgpu::BufferSlice<'a>>,
    /// `[seq_len, batch, num_directions * state_size]`, or see [`RecurrentConfig::batch_first`]; read.
    pub grad_output: Option<wgpu::BufferSlice<'a>>,
    /// `[num_layers * num_directions, batch, state_size]`, read.
    pub grad_h_n: Option<wgpu::BufferSlice<'a>>,
    /// Of an LSTM, `[num_layers * num_directions, batch, hidden_size]`, read.
    pub grad_c_n: Option<wgpu::BufferSlice<'a>>,
    /// `[seq_len, batch, input_size]`, or see [`RecurrentConfig::batch_first`]; written.
    pub grad_input: Option<wgpu::BufferSlice<'a>>,
    /// `[num_layers * num_directions, batch, state_size]`, written.
    pub grad_h_0: Option<wgpu::BufferSlice<'a>>,
    /// Of an LSTM, `[num_layers * num_directions, batch, hidden_size]`, written.
    pub grad_c_0: Option<wgpu::BufferSlice<'a>>,
    /// Of layer and direction at `layer * num_directions + direction`; none if empty.
    pub grad_weights: &'a [RecurrentGradients<'a>],
    /// `[num_layers * num_directions, seq_len]`, written: the norm, over batch and units, of the whole gradient that
    /// reaches the hidden state of a step.
    pub grad_norms: Option<wgpu::BufferSlice<'a>>,
    /// [`Recurrent::backward_scratch_size`] bytes of any content.
    pub scratch: wgpu::BufferSlice<'a>,
}

impl<'a> RecurrentBackwardBuffers<'a> {
    /// The four that every call needs.
    pub fn new(
        input: wgpu::BufferSlice<'a>,
        weights: wgpu::BufferSlice<'a>,
        reserve: wgpu::BufferSlice<'a>,
        scratch: wgpu::BufferSlice<'a>,
    ) -> Self {
        Self {
            input,
            weights,
            reserve,
            lengths: None,
            grad_output: None,
            grad_h_n: None,
            grad_c_n: None,
            grad_input: None,
            grad_h_0: None,
            grad_c_0: None,
            grad_weights: &[],
            grad_norms: None,
            scratch,
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let needed = [
            ("input", self.input),
            ("weights", self.weights),
            ("reserve", self.reserve),
            ("scratch", self.scratch),
        ];
        let optional = [
            ("lengths", self.lengths),
            ("grad_output", self.grad_output),
            ("grad_h_n", self.grad_h_n),
            ("grad_c_n", self.grad_c_n),
            ("grad_input", self.grad_input),
            ("grad_h_0", self.grad_h_0),
            ("grad_c_0", self.grad_c_0),
            ("grad_norms", self.grad_norms),
        ];
        let given = optional
            .into_iter()
            .filter_map(|(name, slice)| Some((name, slice?)));
        needed.into_iter().chain(given).collect()
    }

    fn given(&self) -> RecurrentBackwardGiven {
        let first = self.grad_weights.first();
        RecurrentBackwardGiven {
            lengths: self.lengths.is_some(),
            grad_output: self.grad_output.is_some(),
            grad_h_n: self.grad_h_n.is_some(),
            grad_c_n: self.grad_c_n.is_some(),
            grad_input: self.grad_input.is_some(),
            grad_h_0: self.grad_h_0.is_some(),
            grad_c_0: self.grad_c_0.is_some(),
            parameters: first.is_some(),
            bias: first.is_some_and(|first| first.bias.is_some()),
            grad_norms: self.grad_norms.is_some(),
        }
    }
}

/// Which of the optional tensors a backward pass has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecurrentBackwardGiven {
    /// Lengths.
    pub lengths: bool,
    /// A gradient of `output` arrives.
    pub grad_output: bool,
    /// A gradient of `h_n` arrives.
    pub grad_h_n: bool,
    /// A gradient of `c_n` arrives.
    pub grad_c_n: bool,
    /// The gradient of `input` is asked for.
    pub grad_input: bool,
    /// The gradient of `h_0` is asked for.
    pub grad_h_0: bool,
    /// The gradient of `c_0` is asked for.
    pub grad_c_0: bool,
    /// The gradients of the weights are asked for, also of the peepholes if there are some.
    pub parameters: bool,
    /// Among them those of the biases.
    pub bias: bool,
    /// The norms are asked for.
    pub grad_norms: bool,
}

impl RecurrentConfig {
    fn kept(&self, given: &RecurrentBackwardGiven) -> Kept {
        Kept {
            h: given.grad_norms || self.proj_size.is_some(),
            c: self.peephole,
        }
    }
}

impl RecurrentConfig {
    /// The tiers in which a device can run the reverse sweep, in the order of preference for `batch` rows.
    pub fn backward_tiers(
        &self,
        capabilities: &Capabilities,
        batch: u32,
    ) -> impl Iterator<Item = Tier> + use<> {
        let resident = Tile::resident(capabilities, self, batch);
        let first = resident.is_some_and(|tile| tile.is_preferred(capabilities, self, batch));
        let resident = resident.map(|_| Tier::Resident);
        let (before, behind) = if first {
            (resident, None)
        } else {
            (None, resident)
        };
        before.into_iter().chain([Tier::Stepped]).chain(behind)
    }

    /// How a backward pass runs on a device with `capabilities`; pure. A forced tier that is too small for the
    /// sweep counts for the forward pass alone.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Feature`], [`Error::Limit`], [`Error::Operand`].
    pub fn plan_backward(
        &self,
        capabilities: &Capabilities,
        shape: RecurrentShape,
        given: RecurrentBackwardGiven,
    ) -> Result<Plan, Error> {
        let (mut plan, dispatches) = self.plan_numbered(capabilities, shape, given)?;
        plan.dispatches = dispatches.into_iter().map(|(_, one)| one).collect();
        Ok(plan)
    }

    /// The plan without its dispatches, and these with the index of the weights that each is about.
    fn plan_numbered(
        &self,
        capabilities: &Capabilities,
        shape: RecurrentShape,
        given: RecurrentBackwardGiven,
    ) -> Result<(Plan, Vec<Numbered>), Error> {
        let forward = Given {
            c_0: given.grad_c_0,
            c_n: given.grad_c_n,
            ..Default::default()
        };
        self.check(shape, &forward)?;
        let input = match given.grad_input {
            true => ElementType::F32,
            false => self.element,
        };
        self.check_batch_first(capabilities, shape, input)?;
        self.check_reserve(shape)?;
        if self.truncate == Some(0) {
            return Err(Error::shape("truncate", 0, "at least 1 step"));
        }
        if !self.gradients {
            return Err(Error::Operand {
                name: "weights",
                problem: "were packed without what the backward pass reads (gradients)",
            });
        }
        let variant = Variant::choose(self.variant, self.variants(capabilities), "a recurrence")?;
        let tile = self.choose_backward_tile(capabilities, shape.batch);
        let chunk_steps = self.reserve_steps(capabilities, shape);
        let scratch = BackwardScratch::new(self, capabilities, shape, &given, chunk_steps);
        let reserve = self.reserve(shape, chunk_steps);
        let forward = steps::Planner {
            config: self,
            capabilities,
            shape,
            given: Given {
                h_0: true,
                c_0: self.cell.has_cell_state(),
                lengths: given.lengths,
                reserve: true,
                ..Default::default()
            },
            tile: match self.checkpoint_every {
                Some(_) => self.choose_tile(capabilities, shape.batch, true)?,
                // it runs nothing again
                None => ForwardTile::stepped(capabilities, shape.batch),
            },
            variant,
            scratch: self.scratch(shape, chunk_steps, true),
            reserve: Some(reserve),
            again: scratch.again,
        };
        let planner = Planner {
            config: self,
            capabilities,
            shape,
            given,
            tile,
            variant,
            scratch,
            reserve,
            forward,
        };
        check_dispatches(planner.num_dispatches())?;
        let mut dispatches = Vec::new();
        for layer in (0..self.num_layers).rev() {
            planner.layer(layer, &mut dispatches);
        }
        let once = self.flops(shape);
        let rows = f64::from(shape.batch) * f64::from(shape.seq_len);
        let width = f64::from(self.direction.count()) * f64::from(self.hidden_size);
        let saved = 4.0 * rows * f64::from(self.direction.count()) * f64::from(self.row_len(true));
        let plan = Plan {
            variant,
            describe: tile.describe(),
            dispatches: Vec::new(),
            scratch_size: 4 * planner.scratch.len,
            // for each product of the forward pass one towards the weights and one towards what it read
            flops: match (given.parameters, self.checkpoint_every) {
                (false, None) => once,
                (true, None) | (false, Some(_)) => 2.0 * once,
                (true, Some(_)) => 3.0 * once,
            },
            bytes: 2.0 * self.packed_size() as f64
                + f64::from(self.num_layers) * saved
                + (4 + self.element.size()) as f64 * rows * f64::from(self.input_size)
                + 8.0 * rows * width,
        };
        Ok((plan, dispatches))
    }

    fn choose_backward_tile(&self, capabilities: &Capabilities, batch: u32) -> Tile {
        let mut tiers = self.backward_tiers(capabilities, batch);
        let wanted = match self.tier {
            Some(forced) if tiers.any(|tier| tier == forced) => forced,
            Some(_) => Tier::Stepped,
            None => tiers.next().unwrap_or(Tier::Stepped),
        };
        let resident = Tile::resident(capabilities, self, batch);
        match (wanted, resident) {
            (Tier::Resident, Some(tile)) => tile,
            _ => Tile::stepped(capabilities, batch),
        }
    }
}

impl Recurrent {
    /// How a backward pass will run; pure.
    ///
    /// # Errors
    /// As [`bind_backward`](Self::bind_backward), as far as they do not depend on the buffers.
    pub fn plan_backward(
        &self,
        shape: RecurrentShape,
        given: RecurrentBackwardGiven,
    ) -> Result<Plan, Error> {
        self.config
            .plan_backward(self.context.capabilities(), shape, given)
    }

    /// Bytes of scratch that a backward pass of `shape` needs, whatever is given and asked for.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`], [`Error::Operand`].
    pub fn backward_scratch_size(&self, shape: RecurrentShape) -> Result<u64, Error> {
        let most = RecurrentBackwardGiven {
            lengths: true,
            parameters: true,
            grad_norms: true,
            ..Default::default()
        };
        let few = RecurrentBackwardGiven {
            grad_norms: false,
            ..most
        };
        // with the norms a piece may have fewer steps
        let sizes = [most, few].map(|given| Ok(self.plan_backward(shape, given)?.scratch_size));
        let [most, few] = sizes;
        Ok(most?.max(few?))
    }

    /// Binds the tensors of a backward pass, which can then be recorded behind the forward pass as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Buffer`], [`Error::Operand`], [`Error::Aliased`], [`Error::Limit`]: see there.
    pub fn bind_backward(
        &self,
        shape: RecurrentShape,
        buffers: RecurrentBackwardBuffers<'_>,
    ) -> Result<Bound, Error> {
        let given = buffers.given();
        let expected = self.config.num_layers * self.config.direction.count();
        let count = buffers.grad_weights.len();
        if count != 0 && count != expected as usize {
            let expected = format!("num_layers * num_directions = {expected}, or none");
            return Err(Error::shape("number of grad_weights", count, expected));
        }
        for gradients in buffers.grad_weights {
            if gradients.bias.is_some() != given.bias {
                return Err(Error::Operand {
                    name: "grad_bias_ih",
                    problem: "must be there for all layers and directions or for none",
                });
            }
            wanted(
                "grad_peephole",
                self.config.peephole,
                gradients.peephole.is_some(),
            )?;
            wanted(
                "grad_weight_hr",
                self.config.proj_size.is_some(),
                gradients.weight_hr.is_some(),
            )?;
        }
        let (_, dispatches) =
            self.config
                .plan_numbered(self.context.capabilities(), shape, given)?;
        let mut bound = Bound::default();
        // the gradients of each layer and direction have the same names: bound one after the other
        for run in dispatches.chunk_by(|(a, _), (b, _)| a == b) {
            let mut slices = buffers.slices();
            if let Some(own) = buffers.grad_weights.get(run[0].0 as usize) {
                slices.extend([
                    ("grad_weight_ih", own.weight_ih),
                    ("grad_weight_hh", own.weight_hh),
                ]);
                if let Some((bias_ih, bias_hh)) = own.bias {
                    slices.extend([("grad_bias_ih", bias_ih), ("grad_bias_hh", bias_hh)]);
                }
                slices.extend(own.peephole.map(|peephole| ("grad_peephole", peephole)));
                slices.extend(own.weight_hr.map(|weight_hr| ("grad_weight_hr", weight_hr)));
            }
            let run: Vec<Dispatch> = run.iter().map(|(_, one)| one.clone()).collect();
            bound.extend(self.context.bind_own(&run, &slices)?);
        }
        Ok(bound)
    }

    /// [`bind_backward`](Self::bind_backward) and [`Bound::record`] in one.
    ///
    /// # Errors
    /// Those of [`bind_backward`](Self::bind_backward).
    pub fn record_backward(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        shape: RecurrentShape,
        buffers: RecurrentBackwardBuffers<'_>,
    ) -> Result<(), Error> {
        self.bind_backward(shape, buffers)?.record(pass);
        Ok(())
    }
}
