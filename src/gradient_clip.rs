//! Gradient clipping: by the norm over several buffers, or by value.
//!
//! # Semantics
//! - By norm, all gradients together count as one vector, as in PyTorch's `clip_grad_norm_`: each is multiplied by
//!   `min(1, max_norm / (norm + 1e-6))`. The norm is taken relative to the largest magnitude, so that no square
//!   overflows, and in a fixed order: same device, same inputs, same bits.
//! - By value, each element is bounded to `-max_value..max_value`, as in `clip_grad_value_`.
//! - A gradient that is not finite makes the norm, and by it all gradients, not finite: nothing is hidden.
//!
//! Source: Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks, Alg. 1.

use std::borrow::Cow;
use std::ops::Range;

use crate::kernel::{Access, COMMON, Dispatch, Kernel, Operand, fold_grid, params};
use crate::plan::check_dispatches;
use crate::{Bound, Capabilities, Context, Error, Plan, Variant};

pub(crate) const NORM_PAIR: &str = include_str!("../shaders/norm_pair.wgsl");

/// What is bounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GradientClipConfig {
    /// The norm of all gradients together; 0 or more.
    Norm(f32),
    /// Each element; 0 or more.
    Value(f32),
}

/// The tensors of a call, f32.
#[derive(Debug, Clone, Copy)]
pub struct GradientClipBuffers<'a> {
    /// Read and written, each as long as the call's `lens` say.
    pub gradients: &'a [wgpu::BufferSlice<'a>],
    /// By norm: the norm before clipping and the factor, 8 bytes, written.
    pub norm: Option<wgpu::BufferSlice<'a>>,
    /// By norm: [`GradientClip::scratch_size`] bytes of any content.
    pub scratch: Option<wgpu::BufferSlice<'a>>,
}

params! {
    struct NormParams {
        num_elements: u32,
        num_groups: u32,
        gradient_first: u32,
        partials_first: u32,
    }
}

const NORM: Kernel = Kernel {
    name: "gradient_clip_norm",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        NORM_PAIR,
        include_str!("../shaders/gradient_clip_norm.wgsl"),
    ]),
    params: NormParams::FIELDS,
    storage: &[Access::Read, Access::Write],
    stepped: false,
};

params! {
    struct TotalParams {
        num_partials: u32,
        max_norm: f32,
        norm_first: u32,
    }
}

const TOTAL: Kernel = Kernel {
    name: "gradient_clip_total",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        NORM_PAIR,
        include_str!("../shaders/gradient_clip_total.wgsl"),
    ]),
    params: TotalParams::FIELDS,
    storage: &[Access::Read, Access::Write],
    stepped: false,
};

params! {
    struct ScaleParams {
        num_elements: u32,
        norm_first: u32,
        gradient_first: u32,
    }
}

const SCALE: Kernel = Kernel {
    name: "gradient_clip_scale",
    enables: &[],
    parts: Cow::Borrowed(&[COMMON, include_str!("../shaders/gradient_clip_scale.wgsl")]),
    params: ScaleParams::FIELDS,
    storage: &[Access::Read, Access::Write],
    stepped: false,
};

params! {
    struct ValueParams {
        num_elements: u32,
        max_value: f32,
        gradient_first: u32,
    }
}

const VALUE: Kernel = Kernel {
    name: "gradient_clip_value",
    enables: &[],
    parts: Cow::Borrowed(&[COMMON, include_str!("../shaders/gradient_clip_value.wgsl")]),
    params: ValueParams::FIELDS,
    storage: &[Access::Write],
    stepped: false,
};

/// A dispatch, and which gradient it reads or writes, if any.
type Numbered = (Option<usize>, Dispatch);

/// The most workgroups that share the norm of one binding.
const MOST_GROUPS: u64 = 256;

/// Elements that a workgroup takes at least, while there are fewer than [`MOST_GROUPS`].
const GROUP_ELEMENTS: u64 = 4096;

impl GradientClipConfig {
    /// How gradients of `lens` elements are clipped on a device with `capabilities`; pure.
    ///
    /// # Errors
    /// [`Error::Shape`] for a bound below 0 or that is no number, [`Error::Limit`] for more than a call can take.
    pub fn plan(&self, capabilities: &Capabilities, lens: &[u64]) -> Result<Plan, Error> {
        let (mut plan, dispatches) = self.numbered(capabilities, lens)?;
        plan.dispatches = dispatches.into_iter().map(|(_, one)| one).collect();
        Ok(plan)
    }

    fn numbered(
        &self,
        capabilities: &Capabilities,
        lens: &[u64],
    ) -> Result<(Plan, Vec<Numbered>), Error> {
        let (name, bound) = match *self {
            Self::Norm(bound) => ("max_norm", bound),
            Self::Value(bound) => ("max_value", bound),
        };
        if bound.is_nan() || bound < 0.0 {
            return Err(Error::shape(name, bound as i64, "a number of at least 0"));
        }
        // half of what a binding may span: its start may be moved, and indices are of 32 bits
        let most = (capabilities.storage_binding_size.min(1 << 31) / 8).max(1);
        let total: u64 = lens.iter().fold(0, |sum, &len| sum.saturating_add(len));
        let windows: u64 = lens
            .iter()
            .map(|len| len.div_ceil(most))
            .fold(0, u64::saturating_add);
        check_dispatches(windows.saturating_mul(2).saturating_add(1))?;
        let windows: Vec<(usize, Range<u64>)> = lens
            .iter()
            .enumerate()
            .flat_map(|(at, &len)| {
                let starts = (0..len).step_by(most as usize);
                starts.map(move |start| (at, start..len.min(start + most)))
            })
            .collect();
        let mut dispatches = Vec::new();
        let mut num_partials = 0;
        match *self {
            Self::Value(max_value) => {
                for (at, range) in windows {
                    dispatches.push((Some(at), value(range, max_value)));
                }
            }
            Self::Norm(max_norm) => {
                for (at, range) in &windows {
                    let len = range.end - range.start;
                    let groups = len.div_ceil(GROUP_ELEMENTS).clamp(1, MOST_GROUPS);
                    dispatches.push((Some(*at), norm(range.clone(), groups, num_partials)));
                    num_partials += groups;
                }
                dispatches.push((None, norm_total(num_partials, max_norm)));
                for (at, range) in windows {
                    dispatches.push((Some(at), scale(range)));
                }
            }
        }
        let reads = if matches!(self, Self::Norm(_)) {
            2.0
        } else {
            1.0
        };
        let plan = Plan {
            variant: Variant::Portable,
            describe: format!("{} gradients", lens.len()),
            dispatches: Vec::new(),
            scratch_size: match self {
                Self::Norm(_) => 8 * num_partials.max(1),
                Self::Value(_) => 0,
            },
            flops: 3.0 * total as f64,
            bytes: 4.0 * (reads + 1.0) * total as f64,
        };
        Ok((plan, dispatches))
    }
}

fn norm(range: Range<u64>, groups: u64, partials: u64) -> Dispatch {
    let num_elements = (range.end - range.start) as u32;
    let (gradient, gradient_first) = Operand::elements("gradient", range);
    let own = 2 * partials..2 * (partials + groups);
    let (partials, partials_first) = Operand::elements("scratch", own);
    let params = NormParams {
        num_elements,
        num_groups: groups as u32,
        gradient_first,
        partials_first,
    };
    Dispatch {
        kernel: NORM,
        constants: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: vec![gradient, partials],
        grid: fold_grid(groups),
        steps: 1,
    }
}

fn norm_total(num_partials: u64, max_norm: f32) -> Dispatch {
    let params = TotalParams {
        num_partials: num_partials as u32,
        max_norm,
        norm_first: 0,
    };
    let partials = match num_partials {
        0 => Operand::Unused,
        _ => Operand::whole("scratch", 8 * num_partials),
    };
    Dispatch {
        kernel: TOTAL,
        constants: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: vec![partials, Operand::whole("norm", 8)],
        grid: [1, 1, 1],
        steps: 1,
    }
}

fn scale(range: Range<u64>) -> Dispatch {
    let num_elements = (range.end - range.start) as u32;
    let (gradient, gradient_first) = Operand::elements("gradient", range);
    let params = ScaleParams {
        num_elements,
        norm_first: 0,
        gradient_first,
    };
    Dispatch {
        kernel: SCALE,
        constants: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: vec![Operand::whole("norm", 8), gradient],
        grid: fold_grid(u64::from(num_elements).div_ceil(64)),
        steps: 1,
    }
}

fn value(range: Range<u64>, max_value: f32) -> Dispatch {
    let num_elements = (range.end - range.start) as u32;
    let (gradient, gradient_first) = Operand::elements("gradient", range);
    let params = ValueParams {
        num_elements,
        max_value,
        gradient_first,
    };
    Dispatch {
        kernel: VALUE,
        constants: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: vec![gradient],
        grid: fold_grid(u64::from(num_elements).div_ceil(64)),
        steps: 1,
    }
}

/// Gradient clipping, compiled.
#[derive(Debug, Clone)]
pub struct GradientClip {
    context: Context,
    config: GradientClipConfig,
}

impl GradientClip {
    /// Compiles the kernels of `config`.
    ///
    /// # Errors
    /// [`Error::Shape`] as [`GradientClipConfig::plan`], [`Error::Compile`].
    pub fn new(context: &Context, config: GradientClipConfig) -> Result<Self, Error> {
        context.compile_own(&config.plan(context.capabilities(), &[1])?.dispatches)?;
        Ok(Self {
            context: context.clone(),
            config,
        })
    }

    /// Bytes of scratch for gradients of `lens` elements; 0 by value.
    ///
    /// # Errors
    /// As [`GradientClipConfig::plan`].
    pub fn scratch_size(&self, lens: &[u64]) -> Result<u64, Error> {
        Ok(self
            .config
            .plan(self.context.capabilities(), lens)?
            .scratch_size)
    }

    /// Binds gradients of `lens` elements each, which can then be clipped as often as wanted.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of lens than of gradients; those of [`GradientClipConfig::plan`] and of
    /// [`Context::bind`].
    pub fn bind(&self, lens: &[u64], buffers: GradientClipBuffers<'_>) -> Result<Bound, Error> {
        if lens.len() != buffers.gradients.len() {
            let expected = format!("one for each of the {} gradients", buffers.gradients.len());
            return Err(Error::shape("number of lens", lens.len(), expected));
        }
        let (_, dispatches) = self.config.numbered(self.context.capabilities(), lens)?;
        let mut bound = Bound::default();
        // the gradients have the same name: bound one after the other
        for run in dispatches.chunk_by(|(a, _), (b, _)| a == b) {
            let optional = [("norm", buffers.norm), ("scratch", buffers.scratch)];
            let mut slices: Vec<_> = optional
                .into_iter()
                .filter_map(|(name, slice)| Some((name, slice?)))
                .collect();
            let own = run[0].0.and_then(|at| buffers.gradients.get(at));
            slices.extend(own.map(|&gradient| ("gradient", gradient)));
            let run: Vec<Dispatch> = run.iter().map(|(_, one)| one.clone()).collect();
            bound.extend(self.context.bind_own(&run, &slices)?);
        }
        Ok(bound)
    }

    /// [`bind`](Self::bind) and [`Bound::record`] in one.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        lens: &[u64],
        buffers: GradientClipBuffers<'_>,
    ) -> Result<(), Error> {
        self.bind(lens, buffers)?.record(pass);
        Ok(())
    }
}
