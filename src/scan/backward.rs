//! Gradients of a scan: the same scan in the opposite order of time.

use super::plan::scratch_size;
use super::sweep::{BACKWARD_STATES, Field, Slot, Sweep};
use super::{Scan, ScanConfig, ScanShape, given_slices};
use crate::kernel::{Access, Constant};
use crate::{Bound, Capabilities, Error, Plan, Variant};

const TENSORS: &str = include_str!("../../shaders/scan_backward_tensors.wgsl");

const STORAGE: &[Access] = &[
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Write,
    Access::Write,
    Access::Write,
    Access::Write,
];

/// The tensors of a backward pass, f32 but for `lengths`. Those of the forward pass are unchanged since.
#[derive(Debug, Clone, Copy)]
pub struct ScanBackwardBuffers<'a> {
    /// As in the forward pass.
    pub a: wgpu::BufferSlice<'a>,
    /// As in the forward pass.
    pub h_0: Option<wgpu::BufferSlice<'a>>,
    /// As in the forward pass.
    pub lengths: Option<wgpu::BufferSlice<'a>>,
    /// What the forward pass wrote.
    pub output: wgpu::BufferSlice<'a>,
    /// `[seq_len, batch, width]`, read; zeros if absent.
    pub grad_output: Option<wgpu::BufferSlice<'a>>,
    /// `[batch, width]`, read; zeros if absent.
    pub grad_h_n: Option<wgpu::BufferSlice<'a>>,
    /// `[seq_len, batch, width]`, written.
    pub grad_a: wgpu::BufferSlice<'a>,
    /// `[seq_len, batch, width]`, written. It is also the gradient of every state, all that follows included.
    pub grad_b: wgpu::BufferSlice<'a>,
    /// `[batch, width]`, written if given.
    pub grad_h_0: Option<wgpu::BufferSlice<'a>>,
    /// [`Scan::scratch_size`] bytes of any content.
    pub scratch: wgpu::BufferSlice<'a>,
}

impl<'a> ScanBackwardBuffers<'a> {
    /// The five that every call needs.
    pub fn new(
        a: wgpu::BufferSlice<'a>,
        output: wgpu::BufferSlice<'a>,
        grad_a: wgpu::BufferSlice<'a>,
        grad_b: wgpu::BufferSlice<'a>,
        scratch: wgpu::BufferSlice<'a>,
    ) -> Self {
        let (h_0, lengths, grad_output, grad_h_n, grad_h_0) = Default::default();
        Self {
            a,
            h_0,
            lengths,
            output,
            grad_output,
            grad_h_n,
            grad_a,
            grad_b,
            grad_h_0,
            scratch,
        }
    }

    fn given(&self) -> ScanBackwardGiven {
        ScanBackwardGiven {
            h_0: self.h_0.is_some(),
            lengths: self.lengths.is_some(),
            grad_output: self.grad_output.is_some(),
            grad_h_n: self.grad_h_n.is_some(),
            grad_h_0: self.grad_h_0.is_some(),
        }
    }

    fn slices(&self) -> Vec<(&'static str, wgpu::BufferSlice<'a>)> {
        given_slices([
            ("a", Some(self.a)),
            ("h_0", self.h_0),
            ("lengths", self.lengths),
            ("output", Some(self.output)),
            ("grad_output", self.grad_output),
            ("grad_h_n", self.grad_h_n),
            ("grad_a", Some(self.grad_a)),
            ("grad_b", Some(self.grad_b)),
            ("grad_h_0", self.grad_h_0),
            ("scratch", Some(self.scratch)),
        ])
    }
}

/// Which of the optional tensors a backward pass has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanBackwardGiven {
    /// The forward pass had an initial state.
    pub h_0: bool,
    /// Lengths.
    pub lengths: bool,
    /// Gradients of all states.
    pub grad_output: bool,
    /// A gradient of the last state.
    pub grad_h_n: bool,
    /// The gradient of the initial state is asked for.
    pub grad_h_0: bool,
}

impl ScanConfig {
    /// How a backward pass runs on a device with `capabilities`; pure.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_backward(
        &self,
        capabilities: &Capabilities,
        shape: ScanShape,
        given: ScanBackwardGiven,
    ) -> Result<Plan, Error> {
        let tiling = self.tiling(capabilities, shape)?;
        let lanes = shape.lanes();
        let state = |name, given: bool| given.then_some((name, 0..lanes));
        let sweep = Sweep {
            tiling,
            seq_len: shape.seq_len,
            batch: shape.batch,
            width: shape.width,
            reverse: !self.reverse,
            lengths: given.lengths,
            constants: vec![("GRAD_OUTPUT", Constant::Bool(given.grad_output))],
            source: &[BACKWARD_STATES, TENSORS],
            storage: STORAGE,
            backward: true,
            start: state("grad_h_n", given.grad_h_n),
            h_0: state("h_0", given.h_0),
            finish: given.grad_h_0,
            scratch: 0,
        };
        let mut dispatches = Vec::new();
        let segments = sweep.segments();
        let pieces = segments.iter().flat_map(|segment| sweep.pieces(segment));
        for segment in pieces.filter(|_| lanes > 0) {
            let tensor = |name| shape.part(name, &segment.times);
            let grad_output = given.grad_output.then(|| tensor("grad_output"));
            let grad_h_0 = state("grad_h_0", given.grad_h_0);
            let output = shape.part("output", &segment.previous);
            let (read, write) = (Access::Read, Access::Write);
            let slots = vec![
                Slot::read(tensor("a"), Field::A),
                Slot::apply(output, read, Field::Output),
                Slot::optional(grad_output, read, Field::GradOutput),
                Slot::apply(tensor("grad_a"), write, Field::GradA),
                Slot::apply(tensor("grad_b"), write, Field::GradB),
                Slot::optional(grad_h_0, write, Field::HN),
            ];
            sweep.launch(&segment, slots, &mut dispatches);
        }
        let elements = lanes as f64 * f64::from(shape.seq_len);
        let read = if given.grad_output { 3.0 } else { 2.0 };
        Ok(Plan {
            variant: Variant::Portable,
            describe: format!("backward: {}", tiling.describe()),
            dispatches,
            scratch_size: scratch_size(tiling, lanes),
            flops: 4.0 * elements,
            bytes: 4.0 * (read + 2.0) * elements,
        })
    }
}

impl Scan {
    /// How a backward pass will run; pure.
    ///
    /// # Errors
    /// As [`bind_backward`](Self::bind_backward), as far as they do not depend on the buffers.
    pub fn plan_backward(&self, shape: ScanShape, given: ScanBackwardGiven) -> Result<Plan, Error> {
        let capabilities = self.context.capabilities();
        self.config.plan_backward(capabilities, shape, given)
    }

    /// Binds the tensors of a backward pass: given the gradients of all states and of the last one,
    /// `dh_t = grad_output_t + a_(t+1) * dh_(t+1)`, those of `b` (`dh_t`), `a` (`dh_t * h_(t-1)`) and `h_0`.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_backward(
        &self,
        shape: ScanShape,
        buffers: ScanBackwardBuffers<'_>,
    ) -> Result<Bound, Error> {
        let plan = self.plan_backward(shape, buffers.given())?;
        self.context.bind_own(&plan.dispatches, &buffers.slices())
    }
}
