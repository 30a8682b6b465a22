//! RNN, LSTM and GRU over whole sequences: layers, both directions, optional lengths.
//!
//! # Semantics
//! - Names, gate orders and formulas are PyTorch's: LSTM i, f, g, o; GRU r, z, n with the reset applied after
//!   the product, or before it in [`Cell::GruResetBefore`]. Other frameworks store the same gates as:
//!
//! | source | LSTM | GRU | note |
//! |---|---|---|---|
//! | PyTorch, cuDNN | i f g o | r z n | two biases; a GRU's `bias_hh` of n stays inside `r * (...)` |
//! | ONNX | i o f c | z r h | `linear_before_reset = 1` is [`Cell::Gru`] |
//! | Keras | i f c o | z r h | kernels transposed; `reset_after=True` is [`Cell::Gru`] |
//! | haste | i g f o | z r n | |
//!
//! - The input projection of all steps is one matrix product; the steps then run in a [`Tier`].
//! - With lengths, outputs at and past a sequence's own length are 0, the reverse direction starts at the
//!   sequence's own end, and a sequence of length 0 hands its initial state on.
//! - Within one tier, a sequence cut into pieces that hand on their state gives the same bits as the whole.
//!
//! Source: Hochreiter and Schmidhuber 1997 (LSTM); Cho et al. 2014 (GRU); Appleyard et al. 2016 (the
//! projection hoisted out of the loop); Diamos et al. 2016 (weights that stay on the chip).

mod activation;
mod backward;
mod carry;
mod checkpoint;
mod dropout;
mod layers;
mod pack;
mod plan;
mod reserve;
mod session;
mod steps;
mod tile;

pub use activation::{Activation, Activations};
pub use backward::{RecurrentBackwardBuffers, RecurrentBackwardGiven, RecurrentGradients};
pub use pack::RecurrentWeights;
pub use session::{RecurrentSession, SessionBound, SessionBuffers};

use crate::{Bound, Context, ElementType, Error, Plan, Variant};

/// What happens in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cell {
    /// `tanh(x + h)`
    RnnTanh,
    /// `max(x + h, 0)`
    RnnRelu,
    /// Long short-term memory.
    Lstm,
    /// The same with the forget gate coupled to the input gate: `f = 1 - i`, whatever its weights.
    LstmCoupled,
    /// Gated recurrent unit, as in PyTorch: the reset gate acts on the product.
    Gru,
    /// The original one, ONNX's default: the reset gate acts on h, before the product of n. Two products per
    /// step, one after the other.
    GruResetBefore,
}

impl Cell {
    /// Gates per unit: 1, 4 or 3.
    pub fn num_gates(self) -> u32 {
        match self {
            Self::RnnTanh | Self::RnnRelu => 1,
            Self::Lstm | Self::LstmCoupled => 4,
            Self::Gru | Self::GruResetBefore => 3,
        }
    }

    /// How many of them, from the first on, are products with h itself.
    fn first_gates(self) -> u32 {
        match self {
            Self::GruResetBefore => 2,
            _ => self.num_gates(),
        }
    }

    /// Whether a cell state goes from step to step beside the hidden state.
    pub fn has_cell_state(self) -> bool {
        matches!(self, Self::Lstm | Self::LstmCoupled)
    }
}

/// In which order of time the steps run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// First to last.
    #[default]
    Forward,
    /// Last to first.
    Reverse,
    /// Both, joined on the last axis of `output`, forward first.
    Bidirectional,
}

impl Direction {
    /// 1 or 2.
    pub fn count(self) -> u32 {
        if self == Self::Bidirectional { 2 } else { 1 }
    }
}

/// How the steps of a sequence are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// One dispatch per step, spread over the device.
    Stepped,
    /// One workgroup carries its batch rows through all steps; the number of dispatches does not depend on
    /// `seq_len`, but for a bound on the work of each.
    Resident,
    /// Several workgroups share the units of each sequence through all steps and hand the state to each other
    /// in device memory. One that waits too long gives up, and a second dispatch goes on from that step, in
    /// one workgroup: slower, with the same bits. So it is right everywhere, and fast where the workgroups run
    /// at the same time; it is planned only where [`Context::probe`] has seen them do so, and weights stay in registers.
    Persistent,
}

impl Tier {
    /// The name, as the program's `--tier` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stepped => "stepped",
            Self::Resident => "resident",
            Self::Persistent => "persistent",
        }
    }
}

/// What is fixed when the kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecurrentConfig {
    /// The cell of all layers.
    pub cell: Cell,
    /// How `input` is stored. States, sums and `output` are f32, and so are all gradients.
    pub element: ElementType,
    /// How the tensors of [`RecurrentWeights`] are stored; their packed copy is f32.
    pub weights: ElementType,
    /// `input` is `[batch, seq_len, input_size]` and `output` `[batch, seq_len, num_directions * state_size]`;
    /// they are read and written in place, and so are their gradients. The states are as ever.
    pub batch_first: bool,
    /// Length of an input vector.
    pub input_size: u32,
    /// Units of a layer: the length of a cell state, and of a hidden state unless it is projected.
    pub hidden_size: u32,
    /// Of an LSTM, PyTorch's `proj_size`: the hidden state is `weight_hr (o tanh(c))`, this long, at most
    /// `hidden_size`. It is what the next step, the next layer and the caller see.
    pub proj_size: Option<u32>,
    /// Layers; each but the first reads the output of the one before.
    pub num_layers: u32,
    /// The direction of all layers.
    pub direction: Direction,
    /// Whether the gates of an LSTM look at the cell state, too: see [`RecurrentWeights::peephole`].
    pub peephole: bool,
    /// Probability, from 0 to below 1, that an element of the output of a layer but the last is dropped: 0 to
    /// the next layer, where the others are divided by `1 - dropout`. The layer's own states keep it.
    ///
    /// Element `e` of the output `[seq_len, batch, num_directions * state_size]` of `layer` is kept if word
    /// `e % 4` of `philox([e / 4 mod 2^32, layer, e / 4 / 2^32, 0], seed)` is at least
    /// [`threshold(dropout)`](crate::philox::threshold); the seed's lower half comes first in the key.
    pub dropout: f32,
    /// Of each direction, functions other than [`Cell::activations`]; the kernels for these are slower.
    pub activations: Option<[Activations; 2]>,
    /// Bounds what goes into the activations to `-clip..clip`, as ONNX does.
    pub clip: Option<f32>,
    /// Truncated backpropagation through time: no gradient passes back from a step of a sequence to the one before
    /// where the number of steps before it, in the order in which the direction runs, is a multiple of this; 1 or
    /// more. The forward pass knows nothing of it.
    pub truncate: Option<u32>,
    /// The forward pass leaves for the backward pass the states of a layer in front of every so many steps, 1 or more,
    /// instead of what went into the activations of all of them; the backward pass runs the steps in between again.
    /// What is kept in `reserve` and `scratch` then grows with `seq_len / checkpoint_every + checkpoint_every`, but for
    /// the outputs of inner layers and their gradients. Where that many steps do not fit a binding, they are fewer.
    pub checkpoint_every: Option<u32>,
    /// Whether the packed weights also hold what [`Recurrent::bind_backward`] reads.
    pub gradients: bool,
    /// How often a workgroup of [`Tier::Persistent`] looks for what another hands it before it gives up;
    /// absent, some tens of milliseconds.
    pub spin_bound: Option<u32>,
    /// Forces a tier; otherwise the one that suits shape and device is taken.
    pub tier: Option<Tier>,
    /// Forces a variant; otherwise the best that the device can run is taken. [`Variant::Cooperative`] is only taken if
    /// it is forced and runs in [`Tier::Stepped`], for 8 or 16 batch rows at a time: it multiplies each f32 as two
    /// halves, so states and weights are to be within the range of f16.
    pub variant: Option<Variant>,
}

impl Default for RecurrentConfig {
    fn default() -> Self {
        Self {
            cell: Cell::Lstm,
            element: ElementType::F32,
            weights: ElementType::F32,
            batch_first: false,
            input_size: 128,
            hidden_size: 128,
            proj_size: None,
            num_layers: 1,
            direction: Direction::Forward,
            peephole: false,
            dropout: 0.0,
            activations: None,
            clip: None,
            spin_bound: None,
            truncate: None,
            checkpoint_every: None,
            gradients: false,
            tier: None,
            variant: None,
        }
    }
}

impl RecurrentConfig {
    /// Length of a hidden state: `proj_size`, or `hidden_size`.
    pub fn state_size(&self) -> u32 {
        self.proj_size.unwrap_or(self.hidden_size)
    }

    /// Whether there are layers between which something is dropped.
    fn has_dropout(&self) -> bool {
        self.dropout > 0.0 && self.num_layers > 1
    }

    /// Products per step, each of which waits for the one before.
    fn phases(&self) -> u32 {
        let split = self.cell.first_gates() < self.cell.num_gates();
        1 + u32::from(split || self.proj_size.is_some())
    }
}

/// What varies per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecurrentShape {
    /// Steps.
    pub seq_len: u32,
    /// Independent sequences.
    pub batch: u32,
    /// Of the dropout between layers.
    pub seed: u64,
}

/// The tensors of a call, f32 but for `input` and `lengths`.
#[derive(Debug, Clone, Copy)]
pub struct RecurrentBuffers<'a> {
    /// `[seq_len, batch, input_size]`, or see [`RecurrentConfig::batch_first`]; read; stored as
    /// [`RecurrentConfig::element`] says.
    pub input: wgpu::BufferSlice<'a>,
    /// What [`Recurrent::pack_weights`] wrote; [`Recurrent::packed_size`] bytes, read.
    pub weights: wgpu::BufferSlice<'a>,
    /// `[num_layers * num_directions, batch, state_size]`, read; zeros if absent.
    pub h_0: Option<wgpu::BufferSlice<'a>>,
    /// Of an LSTM, `[num_layers * num_directions, batch, hidden_size]`, read; zeros if absent.
    pub c_0: Option<wgpu::BufferSlice<'a>>,
    /// `[batch]`, u32, read: the length of each sequence, at most `seq_len`; all of it if absent.
    pub lengths: Option<wgpu::BufferSlice<'a>>,
    /// `[seq_len, batch, num_directions * state_size]`, or see [`RecurrentConfig::batch_first`]; written.
    pub output: wgpu::BufferSlice<'a>,
    /// `[num_layers * num_directions, batch, state_size]`, written if given: the state after the last step.
    pub h_n: Option<wgpu::BufferSlice<'a>>,
    /// Of an LSTM, `[num_layers * num_directions, batch, hidden_size]`, written if given.
    pub c_n: Option<wgpu::BufferSlice<'a>>,
    /// What the backward pass needs, written if given; [`Recurrent::reserve_size`] bytes.
    pub reserve: Option<wgpu::BufferSlice<'a>>,
    /// [`Recurrent::scratch_size`] bytes of any content; unused with a `reserve`, unless there are checkpoints.
    pub scratch: wgpu::BufferSlice<'a>,
}

impl<'a> RecurrentBuffers<'a> {
    /// The four that every call needs.
    pub fn new(
        input: wgpu::BufferSlice<'a>,
        weights: wgpu::BufferSlice<'a>,
        output: wgpu::BufferSlice<'a>,
        scratch: wgpu::BufferSlice<'a>,
    ) -> Self {
        let (h_0, c_0, lengths, h_n, c_n, reserve) = Default::default();
        Self {
            input,
            weights,
            h_0,
            c_0,
            lengths,
            output,
            h_n,
            c_n,
            reserve,
            scratch,
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let optional = [
            ("h_0", self.h_0),
            ("c_0", self.c_0),
            ("lengths", self.lengths),
            ("h_n", self.h_n),
            ("c_n", self.c_n),
            ("reserve", self.reserve),
        ];
        let needed = [
            ("input", self.input),
            ("weights", self.weights),
            ("output", self.output),
            ("scratch", self.scratch),
        ];
        let given = optional
            .into_iter()
            .filter_map(|(name, slice)| Some((name, slice?)));
        needed.into_iter().chain(given).collect()
    }

    fn given(&self) -> Given {
        Given {
            h_0: self.h_0.is_some(),
            c_0: self.c_0.is_some(),
            lengths: self.lengths.is_some(),
            h_n: self.h_n.is_some(),
            c_n: self.c_n.is_some(),
            reserve: self.reserve.is_some(),
        }
    }
}

/// Which of the optional tensors a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given {
    /// An initial hidden state.
    pub h_0: bool,
    /// An initial cell state.
    pub c_0: bool,
    /// Lengths.
    pub lengths: bool,
    /// The last hidden state is asked for.
    pub h_n: bool,
    /// The last cell state is asked for.
    pub c_n: bool,
    /// The backward pass follows.
    pub reserve: bool,
}

/// An RNN, LSTM or GRU, compiled for one configuration.
#[derive(Debug, Clone)]
pub struct Recurrent {
    context: Context,
    config: RecurrentConfig,
}

impl Recurrent {
    /// Compiles the kernels of `config` for a batch of one; others are compiled by the first
    /// [`bind`](Self::bind) that needs them.
    ///
    /// # Errors
    /// [`Error::Shape`] for a size of 0, [`Error::Feature`] for a forced variant or tier that the device
    /// cannot run, [`Error::Compile`].
    pub fn new(context: &Context, config: RecurrentConfig) -> Result<Self, Error> {
        let recurrent = Self {
            context: context.clone(),
            config,
        };
        let one = RecurrentShape {
            seq_len: 1,
            batch: 1,
            seed: 0,
        };
        context.compile_own(&recurrent.plan(one, Given::default())?.dispatches)?;
        context.compile_own(&config.pack_dispatches())?;
        Ok(recurrent)
    }

    /// What it was compiled for.
    pub fn config(&self) -> &RecurrentConfig {
        &self.config
    }

    /// How a call will run; pure.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), as far as they do not depend on the buffers.
    pub fn plan(&self, shape: RecurrentShape, given: Given) -> Result<Plan, Error> {
        self.config.plan(self.context.capabilities(), shape, given)
    }

    /// Bytes of scratch that a call of `shape` needs; without checkpoints, one that leaves a reserve needs none.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`].
    pub fn scratch_size(&self, shape: RecurrentShape) -> Result<u64, Error> {
        let size = |reserve| {
            let given = Given {
                reserve,
                ..Default::default()
            };
            Ok(self.plan(shape, given)?.scratch_size)
        };
        // the tier that runs without a reserve may not run with one
        let able = self.config.tier != Some(Tier::Persistent);
        match self.config.checkpoint_every {
            Some(_) if able => Ok(size(false)?.max(size(true)?)),
            _ => size(false),
        }
    }

    /// Bytes that a forward pass of `shape` leaves for the backward pass.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`].
    pub fn reserve_size(&self, shape: RecurrentShape) -> Result<u64, Error> {
        self.config.reserve_size(self.context.capabilities(), shape)
    }

    /// Binds the tensors of a call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Buffer`], [`Error::Operand`], [`Error::Aliased`], [`Error::Limit`]: see there.
    pub fn bind(
        &self,
        shape: RecurrentShape,
        buffers: RecurrentBuffers<'_>,
    ) -> Result<Bound, Error> {
        let plan = self.plan(shape, buffers.given())?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }

    /// [`bind`](Self::bind) and [`Bound::record`] in one.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        shape: RecurrentShape,
        buffers: RecurrentBuffers<'_>,
    ) -> Result<(), Error> {
        self.bind(shape, buffers)?.record(pass);
        Ok(())
    }

    /// [`bind`](Self::bind) without the input projections, to time the steps by themselves. They read what
    /// the last full call of the same shape has left in `scratch`; where that call took several chunks, only
    /// the last chunk's is right.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn bind_steps(
        &self,
        shape: RecurrentShape,
        buffers: RecurrentBuffers<'_>,
    ) -> Result<Bound, Error> {
        let mut dispatches = self.plan(shape, buffers.given())?.dispatches;
        dispatches.retain(|dispatch| dispatch.kernel.name.starts_with("recurrent"));
        self.context.bind_own(&dispatches, &buffers.slices())
    }

    /// A single step for streaming: a sequence of length 1 through the stepped kernels, which hands the state
    /// from `h_0` and `c_0` to `h_n` and `c_n`. Equal, bit for bit, to the same step of a sequence there.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind); [`Error::Operand`] with dropout, whose noise would be the same in every step.
    pub fn bind_step(&self, batch: u32, buffers: RecurrentBuffers<'_>) -> Result<Bound, Error> {
        let shape = RecurrentShape {
            seq_len: 1,
            batch,
            seed: 0,
        };
        let config = RecurrentConfig {
            tier: Some(Tier::Stepped),
            ..self.config
        };
        if config.has_dropout() {
            return Err(Error::Operand {
                name: "dropout",
                problem: "a single step does not know its time",
            });
        }
        let plan = config.plan(self.context.capabilities(), shape, buffers.given())?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }
}
