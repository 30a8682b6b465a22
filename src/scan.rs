//! First-order linear recurrence, parallel in time: `h_t = a_t * h_(t-1) + b_t`, element by element.
//!
//! # Semantics
//! - Every element of `[batch, width]` follows by itself; `h_0` is zeros if absent.
//! - With lengths, outputs at and past a sequence's own length are 0 and nothing there is read into a result; in
//!   reverse a sequence starts at its own end; one of length 0 hands `h_0` on.
//! - `output` may be the storage of `b` and the like only if the slices do not overlap.
//! - Where the lanes are too few for the device, the steps are cut into chunks: one launch makes one step of all
//!   of a chunk's, one goes from chunk to chunk, one computes the states of all chunks at once. No launch waits
//!   for another workgroup, and the order of every sum is fixed by the plan: same device, same shape, same bits.
//!
//! Source: Blelloch 1990, *Prefix sums and their applications*; Martin and Cundy 2018, *Parallelizing linear
//! recurrent neural nets over sequence length*.

mod backward;
mod plan;
mod sweep;

pub use backward::{ScanBackwardBuffers, ScanBackwardGiven};
pub(crate) use sweep::{BACKWARD_STATES, Field, PART, Segment, Slot, Sweep, Tiling};

use crate::{Bound, Context, Error, Plan};

/// What is fixed when the kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanConfig {
    /// Later times come first: `h_t = a_t * h_(t+1) + b_t`.
    pub reverse: bool,
    /// Forces the steps of a chunk; otherwise as few chunks are taken as fill the device.
    pub chunk_len: Option<u32>,
}

/// What varies per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanShape {
    /// Steps.
    pub seq_len: u32,
    /// Independent sequences.
    pub batch: u32,
    /// Numbers of a state.
    pub width: u32,
}

/// The tensors of a call, f32 but for `lengths`.
#[derive(Debug, Clone, Copy)]
pub struct ScanBuffers<'a> {
    /// `[seq_len, batch, width]`, read.
    pub a: wgpu::BufferSlice<'a>,
    /// `[seq_len, batch, width]`, read.
    pub b: wgpu::BufferSlice<'a>,
    /// `[batch, width]`, read; zeros if absent.
    pub h_0: Option<wgpu::BufferSlice<'a>>,
    /// `[batch]`, u32, read: the length of each sequence, at most `seq_len`; all of it if absent.
    pub lengths: Option<wgpu::BufferSlice<'a>>,
    /// `[seq_len, batch, width]`, written: all states.
    pub output: wgpu::BufferSlice<'a>,
    /// `[batch, width]`, written if given: the state after the last step.
    pub h_n: Option<wgpu::BufferSlice<'a>>,
    /// [`Scan::scratch_size`] bytes of any content.
    pub scratch: wgpu::BufferSlice<'a>,
}

impl<'a> ScanBuffers<'a> {
    /// The four that every call needs.
    pub fn new(
        a: wgpu::BufferSlice<'a>,
        b: wgpu::BufferSlice<'a>,
        output: wgpu::BufferSlice<'a>,
        scratch: wgpu::BufferSlice<'a>,
    ) -> Self {
        Self {
            a,
            b,
            h_0: None,
            lengths: None,
            output,
            h_n: None,
            scratch,
        }
    }

    fn given(&self) -> ScanGiven {
        ScanGiven {
            h_0: self.h_0.is_some(),
            lengths: self.lengths.is_some(),
            h_n: self.h_n.is_some(),
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        let all = [
            ("a", Some(self.a)),
            ("b", Some(self.b)),
            ("h_0", self.h_0),
            ("lengths", self.lengths),
            ("output", Some(self.output)),
            ("h_n", self.h_n),
            ("scratch", Some(self.scratch)),
        ];
        given_slices(all)
    }
}

pub(crate) fn given_slices<'a, const N: usize>(
    all: [(&'static str, Option<wgpu::BufferSlice<'a>>); N],
) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
    let given = all
        .into_iter()
        .filter_map(|(name, slice)| Some((name, slice?)));
    given.collect()
}

/// Which of the optional tensors a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanGiven {
    /// An initial state.
    pub h_0: bool,
    /// Lengths.
    pub lengths: bool,
    /// The last state is asked for.
    pub h_n: bool,
}

/// A linear recurrence, compiled for one configuration.
#[derive(Debug, Clone)]
pub struct Scan {
    context: Context,
    config: ScanConfig,
}

impl Scan {
    /// Compiles the kernels for long sequences of few lanes; others are compiled by the first
    /// [`bind`](Self::bind) that needs them.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn new(context: &Context, config: ScanConfig) -> Result<Self, Error> {
        let scan = Self {
            context: context.clone(),
            config,
        };
        let few_lanes = ScanShape {
            seq_len: 4096,
            batch: 1,
            width: 1,
        };
        let plan = scan.plan(few_lanes, ScanGiven::default())?;
        context.compile_own(&plan.dispatches)?;
        Ok(scan)
    }

    /// What it was compiled for.
    pub fn config(&self) -> &ScanConfig {
        &self.config
    }

    /// How a call will run; pure.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), as far as they do not depend on the buffers.
    pub fn plan(&self, shape: ScanShape, given: ScanGiven) -> Result<Plan, Error> {
        self.config.plan(self.context.capabilities(), shape, given)
    }

    /// Bytes of scratch that a call of `shape` needs, forward or backward.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Limit`].
    pub fn scratch_size(&self, shape: ScanShape) -> Result<u64, Error> {
        Ok(self.plan(shape, ScanGiven::default())?.scratch_size)
    }

    /// Binds the tensors of a call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Buffer`], [`Error::Operand`], [`Error::Aliased`], [`Error::Limit`]: see there.
    pub fn bind(&self, shape: ScanShape, buffers: ScanBuffers<'_>) -> Result<Bound, Error> {
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
        shape: ScanShape,
        buffers: ScanBuffers<'_>,
    ) -> Result<(), Error> {
        self.bind(shape, buffers)?.record(pass);
        Ok(())
    }
}
