//! From dispatches as data to bind groups that can be recorded.

use std::ops::Range;

use wgpu::util::DeviceExt;

use crate::context::STEP_STRIDE;
use crate::kernel::{Access, Dispatch, Operand, WINDOW_ALIGNMENT};
use crate::{Checks, Context, Error};

/// An operation with its buffers: ready to be recorded, as often as wanted.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    launches: Vec<Launch>,
}

#[derive(Debug, Clone)]
struct Launch {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    grid: [u32; 3],
    steps: Option<(wgpu::BindGroup, u32)>,
}

impl Bound {
    /// Encodes the dispatches into the caller's pass, and does nothing else.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        for launch in &self.launches {
            let [x, y, z] = launch.grid;
            pass.set_pipeline(&launch.pipeline);
            pass.set_bind_group(0, &launch.group, &[]);
            match &launch.steps {
                None => pass.dispatch_workgroups(x, y, z),
                Some((steps, count)) => {
                    for step in 0..*count {
                        pass.set_bind_group(1, steps, &[step * STEP_STRIDE]);
                        pass.dispatch_workgroups(x, y, z);
                    }
                }
            }
        }
    }

    /// Records `next` behind this.
    pub(crate) fn extend(&mut self, next: Self) {
        self.launches.extend(next.launches);
    }

    /// The dispatches that [`record`](Self::record) encodes.
    pub fn num_dispatches(&self) -> u32 {
        self.launches
            .iter()
            .map(|launch| launch.steps.as_ref().map_or(1, |(_, count)| *count))
            .sum()
    }
}

impl Context {
    /// Binds `dispatches` to buffers: checks every slice, creates the uniforms and bind groups. This is how a
    /// caller's own WGSL is run; the operations of this library have a `bind` of their own.
    ///
    /// `slices` names the caller's slices as the operands do.
    ///
    /// # Errors
    /// [`Error::Operand`] for a slice that is missing or whose buffer lacks `STORAGE`,
    /// [`Error::Buffer`] for one that is too short, [`Error::Shape`] for one that starts unaligned,
    /// [`Error::Aliased`] where a written slice overlaps another, [`Error::Limit`] and [`Error::Compile`].
    pub fn bind(
        &self,
        dispatches: &[Dispatch],
        slices: &[(&'static str, wgpu::BufferSlice<'_>)],
    ) -> Result<Bound, Error> {
        self.bind_with(Checks::Checked, dispatches, slices)
    }

    /// [`bind`](Self::bind) for dispatches that an operation of this library has planned, unaltered.
    pub(crate) fn bind_own(
        &self,
        dispatches: &[Dispatch],
        slices: &[(&'static str, wgpu::BufferSlice<'_>)],
    ) -> Result<Bound, Error> {
        self.bind_with(self.own_checks(), dispatches, slices)
    }

    fn bind_with(
        &self,
        checks: Checks,
        dispatches: &[Dispatch],
        slices: &[(&'static str, wgpu::BufferSlice<'_>)],
    ) -> Result<Bound, Error> {
        for dispatch in dispatches {
            dispatch.check()?;
        }
        let uniforms = self.uniforms(dispatches);
        let mut launches = Vec::with_capacity(dispatches.len());
        let mut uniform_offset = 0;
        for dispatch in dispatches {
            let (bindings, shared) = self.storage_bindings(dispatch, slices)?;
            let pipeline = self.pipeline(dispatch, shared, checks)?;
            let params = wgpu::BufferBinding {
                buffer: &uniforms,
                offset: uniform_offset,
                size: wgpu::BufferSize::new(dispatch.params.len().max(16) as u64),
            };
            uniform_offset += uniform_stride(dispatch);
            let entries: Vec<_> = std::iter::once(params)
                .chain(bindings)
                .enumerate()
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding: binding as u32,
                    resource: wgpu::BindingResource::Buffer(buffer),
                })
                .collect();
            let group = self.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(dispatch.kernel.name),
                layout: &pipeline.layout,
                entries: &entries,
            });
            let steps = dispatch.kernel.stepped.then(|| self.steps().group.clone());
            launches.push(Launch {
                pipeline: pipeline.pipeline.clone(),
                group,
                grid: dispatch.grid,
                steps: steps.map(|group| (group, dispatch.steps)),
            });
        }
        Ok(Bound { launches })
    }

    fn uniforms(&self, dispatches: &[Dispatch]) -> wgpu::Buffer {
        let size: u64 = dispatches.iter().map(uniform_stride).sum();
        let mut contents = Vec::with_capacity(size as usize);
        for dispatch in dispatches {
            let end = contents.len() + uniform_stride(dispatch) as usize;
            contents.extend_from_slice(&dispatch.params);
            contents.resize(end, 0);
        }
        self.device()
            .create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: Some("gatefold params"),
                contents: &contents,
                usage: wgpu::BufferUsages::UNIFORM,
            })
    }

    /// The storage bindings of a dispatch, and whether one buffer is both read and written.
    fn storage_bindings<'a>(
        &'a self,
        dispatch: &Dispatch,
        slices: &[(&'static str, wgpu::BufferSlice<'a>)],
    ) -> Result<(Vec<wgpu::BufferBinding<'a>>, bool), Error> {
        let mut windows = Vec::with_capacity(dispatch.operands.len());
        for (operand, &access) in dispatch.operands.iter().zip(dispatch.kernel.storage) {
            windows.push(match operand {
                Operand::Unused => Window {
                    name: "",
                    access,
                    buffer: self.filler(access),
                    range: 0..WINDOW_ALIGNMENT,
                    reach: WINDOW_ALIGNMENT,
                },
                Operand::Slice { name, window } => {
                    let slice = slices
                        .iter()
                        .find(|(slot, _)| slot == name)
                        .map(|(_, slice)| *slice);
                    let problem = "is needed and missing";
                    let slice = slice.ok_or(Error::Operand { name, problem })?;
                    let range = self.window(name, slice, window)?;
                    let reach = slice.offset() + slice.size();
                    Window {
                        name,
                        access,
                        buffer: slice.buffer(),
                        range,
                        reach,
                    }
                }
            });
        }
        let shared = check_aliasing(&windows)?;
        let binding = |window: &Window<'a>| {
            // all of the caller's slice where it is alone in its buffer: a binding that ended with the
            // tensor would swallow a stray write just behind it, and no canary would see it
            let alone = windows
                .iter()
                .filter(|other| other.buffer == window.buffer)
                .count()
                == 1;
            let most = self.capabilities().storage_binding_size;
            let size = match alone {
                true => (window.reach - window.range.start).min(most) & !3,
                false => window.range.end - window.range.start,
            };
            wgpu::BufferBinding {
                buffer: window.buffer,
                offset: window.range.start,
                size: wgpu::BufferSize::new(size),
            }
        };
        Ok((windows.iter().map(binding).collect(), shared))
    }

    /// The bytes of the buffer that `window` of `slice` spans.
    fn window(
        &self,
        name: &'static str,
        slice: wgpu::BufferSlice<'_>,
        window: &Range<u64>,
    ) -> Result<Range<u64>, Error> {
        if !slice.buffer().usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Operand {
                name,
                problem: "its buffer lacks the usage STORAGE",
            });
        }
        if window.end > slice.size() {
            return Err(Error::Buffer {
                name,
                needed: window.end,
                got: slice.size(),
            });
        }
        let alignment = self.device().limits().min_storage_buffer_offset_alignment;
        if slice.offset() % u64::from(alignment) != 0 {
            let expected = format!("a slice that starts at a multiple of {alignment} bytes");
            return Err(Error::shape(name, slice.offset(), expected));
        }
        let size = window.end - window.start;
        if size > self.capabilities().storage_binding_size {
            return Err(Error::Limit {
                limit: "max_storage_buffer_binding_size",
                needed: size,
                allowed: self.capabilities().storage_binding_size,
            });
        }
        Ok(slice.offset() + window.start..slice.offset() + window.end)
    }
}

/// What one storage binding needs of a buffer, and how far the caller's slice reaches.
struct Window<'a> {
    name: &'static str,
    access: Access,
    buffer: &'a wgpu::Buffer,
    range: Range<u64>,
    reach: u64,
}

/// Whether some buffer is both read and written, in places that do not overlap.
fn check_aliasing(windows: &[Window<'_>]) -> Result<bool, Error> {
    let mut shared = false;
    for (i, a) in windows.iter().enumerate() {
        for b in windows[..i].iter().filter(|b| b.buffer == a.buffer) {
            let (written, other) = match (a.access, b.access) {
                (Access::Read, Access::Read) => continue,
                (Access::Write, _) => (a, b),
                (Access::Read, Access::Write) => (b, a),
            };
            let is_filler = a.name.is_empty() && b.name.is_empty();
            if !is_filler && a.range.start < b.range.end && b.range.start < a.range.end {
                return Err(Error::Aliased {
                    output: written.name,
                    other: other.name,
                });
            }
            shared |= a.access != b.access;
        }
    }
    Ok(shared)
}

/// A kernel without parameters has a place in the uniform too, since nothing empty can be bound.
fn uniform_stride(dispatch: &Dispatch) -> u64 {
    (dispatch.params.len().max(1) as u64).next_multiple_of(WINDOW_ALIGNMENT)
}
