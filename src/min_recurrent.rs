//! minGRU and minLSTM: recurrence without the sequential wait. The gates look at the input only, so that they are
//! one matrix product over all steps, and what is left is a [`Scan`](crate::Scan).
//!
//! # Semantics
//! - With `x_t` the input of a layer and `W x + bias` in blocks of `hidden_size` rows, one per gate:
//!
//! | cell | gates | step |
//! |---|---|---|
//! | [`MinCell::Gru`] | `z = sigmoid`, `n = g` | `h_t = (1 - z) h_(t-1) + z n` |
//! | [`MinCell::Lstm`] | `f, i = sigmoid`, `n = g` | `h_t = f / (f + i) h_(t-1) + i / (f + i) n` |
//!
//! - `g` is the identity, as in the paper's sections 3.1 and 3.2, or keeps states positive, as in its appendix
//!   ([`Candidate`]). These are the versions outside log space; nothing overflows here, since the scan
//!   multiplies numbers between 0 and 1.
//! - Lengths, `h_0` and `h_n` are those of a [`Recurrent`](crate::Recurrent).
//!
//! Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi 2024, *Were RNNs all we needed?*

mod backward;
mod pack;
mod plan;

pub use backward::{MinRecurrentBackwardBuffers, MinRecurrentBackwardGiven};
pub use pack::MinRecurrentWeights;

use crate::scan::given_slices;
use crate::{Bound, Context, Error, Plan, Variant};

/// What happens in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MinCell {
    /// Gates z, n.
    Gru,
    /// Gates f, i, n; f and i are made to add up to 1.
    Lstm,
}

impl MinCell {
    /// Gates per unit: 2 or 3.
    pub fn num_gates(self) -> u32 {
        match self {
            Self::Gru => 2,
            Self::Lstm => 3,
        }
    }
}

/// What makes the new value of the product `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Candidate {
    /// `x`
    #[default]
    Linear,
    /// `x + 1/2` from 0 on, `sigmoid(x)` below: always positive, for weights trained in log space.
    Positive,
}

/// What is fixed when the kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinRecurrentConfig {
    /// The cell of all layers.
    pub cell: MinCell,
    /// Length of an input vector.
    pub input_size: u32,
    /// Length of a hidden state.
    pub hidden_size: u32,
    /// Layers; each but the first reads the output of the one before.
    pub num_layers: u32,
    /// What makes the new value.
    pub candidate: Candidate,
    /// Later times come first.
    pub reverse: bool,
    /// Forces the steps of a chunk of the scan; otherwise as few chunks are taken as fill the device.
    pub chunk_len: Option<u32>,
    /// Forces a variant of the products; otherwise the best that the device can run is taken.
    pub variant: Option<Variant>,
}

impl Default for MinRecurrentConfig {
    fn default() -> Self {
        Self {
            cell: MinCell::Gru,
            input_size: 128,
            hidden_size: 128,
            num_layers: 1,
            candidate: Candidate::Linear,
            reverse: false,
            chunk_len: None,
            variant: None,
        }
    }
}

/// What varies per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinRecurrentShape {
    /// Steps.
    pub seq_len: u32,
    /// Independent sequences.
    pub batch: u32,
}

/// The tensors of a call, f32 but for `lengths`.
#[derive(Debug, Clone, Copy)]
pub struct MinRecurrentBuffers<'a> {
    /// `[seq_len, batch, input_size]`, read.
    pub input: wgpu::BufferSlice<'a>,
    /// What [`MinRecurrent::pack_weights`] wrote; [`MinRecurrent::packed_size`] bytes, read.
    pub weights: wgpu::BufferSlice<'a>,
    /// `[num_layers, batch, hidden_size]`, read; zeros if absent.
    pub h_0: Option<wgpu::BufferSlice<'a>>,
    /// `[batch]`, u32, read: the length of each sequence, at most `seq_len`; all of it if absent.
    pub lengths: Option<wgpu::BufferSlice<'a>>,
    /// `[seq_len, batch, hidden_size]`, written.
    pub output: wgpu::BufferSlice<'a>,
    /// `[num_layers, batch, hidden_size]`, written if given: the state after the last step.
    pub h_n: Option<wgpu::BufferSlice<'a>>,
    /// [`MinRecurrent::reserve_size`] bytes, written if given: what a backward pass needs beside the outputs.
    pub reserve: Option<wgpu::BufferSlice<'a>>,
    /// [`MinRecurrent::scratch_size`] bytes of any content.
    pub scratch: wgpu::BufferSlice<'a>,
}

impl<'a> MinRecurrentBuffers<'a> {
    /// The four that every call needs.
    pub fn new(
        input: wgpu::BufferSlice<'a>,
        weights: wgpu::BufferSlice<'a>,
        output: wgpu::BufferSlice<'a>,
        scratch: wgpu::BufferSlice<'a>,
    ) -> Self {
        let (h_0, lengths, h_n, reserve) = Default::default();
        Self {
            input,
            weights,
            h_0,
            lengths,
            output,
            h_n,
            reserve,
            scratch,
        }
    }

    fn given(&self) -> MinRecurrentGiven {
        MinRecurrentGiven {
            h_0: self.h_0.is_some(),
            lengths: self.lengths.is_some(),
            h_n: self.h_n.is_some(),
            reserve: self.reserve.is_some(),
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        given_slices([
            ("input", Some(self.input)),
            ("weights", Some(self.weights)),
            ("h_0", self.h_0),
            ("lengths", self.lengths),
            ("output", Some(self.output)),
            ("h_n", self.h_n),
            ("reserve", self.reserve),
            ("scratch", Some(self.scratch)),
        ])
    }
}

/// Which of the optional tensors a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MinRecurrentGiven {
    /// An initial state.
    pub h_0: bool,
    /// Lengths.
    pub lengths: bool,
    /// The last state is asked for.
    pub h_n: bool,
    /// A backward pass follows.
    pub reserve: bool,
}

/// A minGRU or minLSTM, compiled for one configuration.
#[derive(Debug, Clone)]
pub struct MinRecurrent {
    context: Context,
    config: MinRecurrentConfig,
}

impl MinRecurrent {
    /// Compiles the kernels of `config` for a long sequence; others are compiled by the first
    /// [`bind`](Self::bind) that needs them.
    ///
    /// # Errors
    /// [`Error::Shape`] for a size of 0, [`Error::Feature`] for a forced variant that the device cannot run,
    /// [`Error::Compile`].
    pub fn new(context: &Context, config: MinRecurrentConfig) -> Result<Self, Error> {
        let recurrent = Self {
            context: context.clone(),
            config,
        };
        let long = MinRecurrentShape {
            seq_len: 1024,
            batch: 1,
        };
        let plan = recurrent.plan(long, MinRecurrentGiven::default())?;
        context.compile_own(&plan.dispatches)?;
        context.compile_own(&config.pack_dispatches())?;
        Ok(recurrent)
    }

    /// What it was compiled for.
    pub fn config(&self) -> &MinRecurrentConfig {
        &self.config
    }

    /// How a call will run; pure.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), as far as they do not depend on the buffers.
    pub fn plan(&self, shape: MinRecurrentShape, given: MinRecurrentGiven) -> Result<Plan, Error> {
        self.config.plan(self.context.capabilities(), shape, given)
    }

    /// Bytes of scratch that a call of `shape` needs.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`].
    pub fn scratch_size(&self, shape: MinRecurrentShape) -> Result<u64, Error> {
        Ok(self.plan(shape, MinRecurrentGiven::default())?.scratch_size)
    }

    /// Bytes that a forward pass leaves for the backward one.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`].
    pub fn reserve_size(&self, shape: MinRecurrentShape) -> Result<u64, Error> {
        self.config.reserve_size(shape)
    }

    /// Binds the tensors of a call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Buffer`], [`Error::Operand`], [`Error::Aliased`], [`Error::Limit`]: see there.
    pub fn bind(
        &self,
        shape: MinRecurrentShape,
        buffers: MinRecurrentBuffers<'_>,
    ) -> Result<Bound, Error> {
        let plan = self.plan(shape, buffers.given())?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }

    /// [`bind`](Self::bind) without the products, to time the scan by itself. It reads what the last full call of
    /// the same shape has left in `scratch` or `reserve`; where that call took several segments, or layers, without a
    /// reserve, only the last one's is right.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn bind_scan(
        &self,
        shape: MinRecurrentShape,
        buffers: MinRecurrentBuffers<'_>,
    ) -> Result<Bound, Error> {
        let mut dispatches = self.plan(shape, buffers.given())?.dispatches;
        dispatches.retain(|dispatch| dispatch.kernel.name.starts_with("scan"));
        self.context.bind_own(&dispatches, &buffers.slices())
    }

    /// [`bind`](Self::bind) and [`Bound::record`] in one.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        shape: MinRecurrentShape,
        buffers: MinRecurrentBuffers<'_>,
    ) -> Result<(), Error> {
        self.bind(shape, buffers)?.record(pass);
        Ok(())
    }
}
