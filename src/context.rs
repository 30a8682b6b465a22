use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use wgpu::util::DeviceExt;

use crate::Error;
use crate::kernel::{Access, Constants, Dispatch, Kernel, MAX_STEPS, Operand, WINDOW_ALIGNMENT};

/// What a device can do, as far as our kernels care. Plain data: a test or a host may take something away
/// (see [`Context::with_capabilities`]) so that one adapter stands for many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The device computes on CPU cores (llvmpipe, SwiftShader, WARP): it gets tiles of its own.
    pub cpu: bool,
    /// Smallest and largest subgroup size, where subgroup operations may be used.
    pub subgroup_size: Option<(u32, u32)>,
    /// `array<f16>` in storage buffers.
    pub f16: bool,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Invocations per workgroup.
    pub workgroup_invocations: u32,
    /// Bytes that one storage binding may span.
    pub storage_binding_size: u64,
}

impl Capabilities {
    /// Reads what `device` was created with; what the host did not request does not exist.
    pub fn of(device: &wgpu::Device) -> Self {
        let (info, features, limits) = (device.adapter_info(), device.features(), device.limits());
        Self {
            cpu: info.device_type == wgpu::DeviceType::Cpu,
            subgroup_size: features
                .contains(wgpu::Features::SUBGROUP)
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            f16: features.contains(wgpu::Features::SHADER_F16),
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            storage_binding_size: limits.max_storage_buffer_binding_size,
        }
    }

    /// What a device with [`wgpu::Limits::default`] and no features can do: the floor on which everything
    /// works.
    pub fn floor() -> Self {
        let limits = wgpu::Limits::default();
        Self {
            cpu: false,
            subgroup_size: None,
            f16: false,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            storage_binding_size: limits.max_storage_buffer_binding_size,
        }
    }

    /// The subgroup size, where it is one number, known before a kernel is compiled.
    pub fn fixed_subgroup_size(&self) -> Option<u32> {
        self.subgroup_size
            .and_then(|(min, max)| (min == max && min > 1).then_some(min))
    }

    /// The largest power of two of lanes, at most `most`, that are always within one subgroup; 1 without
    /// subgroups.
    pub fn lanes_within_subgroup(&self, most: u32) -> u32 {
        self.subgroup_size.map_or(1, |(min, _)| min.clamp(1, most))
    }
}

/// Whether the compiled shaders keep the checks that naga adds (bounds of arrays, bounded loops).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Checks {
    /// Without: our kernels stay within their bindings by themselves, and the tests' canaries watch it.
    #[default]
    Trusted,
    /// With, for kernels of the caller's own and to find out whether a fault is ours.
    Checked,
}

/// A device with what is compiled for it. Cheap to clone; clones share the compiled pipelines.
///
/// Creating one creates nothing on the device. A context never submits, polls or reads back.
#[derive(Debug, Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: wgpu::Device,
    capabilities: Capabilities,
    checks: Checks,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    fillers: OnceLock<[wgpu::Buffer; 2]>,
    steps: OnceLock<Steps>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PipelineKey {
    kernel: Kernel,
    constants: Constants,
    shared: bool,
}

#[derive(Debug)]
struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// The uniform of step numbers, one per 256 bytes, that every stepped dispatch reads at a dynamic offset:
/// a thousand launches need one bind group and no buffer of their own.
#[derive(Debug)]
struct Steps {
    layout: wgpu::BindGroupLayout,
    group: wgpu::BindGroup,
}

const STEP_STRIDE: u32 = 256;

impl Context {
    /// A context on the application's own device, with everything that device can do.
    pub fn new(device: &wgpu::Device) -> Self {
        Self::with_capabilities(device, Capabilities::of(device), Checks::default())
    }

    /// A context that uses only what `capabilities` says, which must not be more than the device has.
    pub fn with_capabilities(
        device: &wgpu::Device,
        capabilities: Capabilities,
        checks: Checks,
    ) -> Self {
        let inner = Inner {
            device: device.clone(),
            capabilities,
            checks,
            pipelines: Mutex::default(),
            fillers: OnceLock::new(),
            steps: OnceLock::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The features that make our kernels faster where `adapter` has them, for
    /// [`wgpu::DeviceDescriptor::required_features`]. Everything works without.
    pub fn wanted_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        let wanted =
            wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16 | wgpu::Features::TIMESTAMP_QUERY;
        adapter.features() & wanted
    }

    /// The limits that let our kernels take large tensors and tiles, at most what `adapter` has.
    /// Everything works at [`wgpu::Limits::default`].
    pub fn wanted_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
        let has = adapter.limits();
        let base = wgpu::Limits::default().or_worse_values_from(&has);
        wgpu::Limits {
            max_buffer_size: has.max_buffer_size,
            max_storage_buffer_binding_size: has.max_storage_buffer_binding_size,
            max_storage_buffers_per_shader_stage: has.max_storage_buffers_per_shader_stage.min(16),
            max_compute_workgroup_storage_size: has.max_compute_workgroup_storage_size,
            max_compute_invocations_per_workgroup: has.max_compute_invocations_per_workgroup,
            max_compute_workgroup_size_x: has.max_compute_workgroup_size_x,
            ..base
        }
    }

    /// The device that this context compiles for.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// What the operations of this context may use.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Compiles what `dispatches` need and is not compiled yet.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's message.
    pub fn compile(&self, dispatches: &[Dispatch]) -> Result<(), Error> {
        for dispatch in dispatches {
            self.pipeline(&dispatch.kernel, &dispatch.constants, false)?;
        }
        Ok(())
    }

    /// Binds `dispatches` to buffers: checks every slice, creates the uniforms and bind groups.
    ///
    /// `slices` names the caller's slices as the operands do. This is also how a caller's own WGSL is run:
    /// describe it as a [`Dispatch`].
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
        for dispatch in dispatches {
            dispatch.check()?;
        }
        let uniforms = self.uniforms(dispatches);
        let mut launches = Vec::with_capacity(dispatches.len());
        let mut uniform_offset = 0;
        for dispatch in dispatches {
            let (bindings, shared) = self.storage_bindings(dispatch, slices)?;
            let pipeline = self.pipeline(&dispatch.kernel, &dispatch.constants, shared)?;
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

    /// What stands at a binding that a variant does not touch. Reading and writing have a buffer each,
    /// since wgpu refuses one in both uses.
    fn filler(&self, access: Access) -> &wgpu::Buffer {
        let [read, write] = self.inner.fillers.get_or_init(|| {
            ["gatefold filler, read", "gatefold filler, written"].map(|label| {
                self.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size: WINDOW_ALIGNMENT,
                    usage: wgpu::BufferUsages::STORAGE,
                    mapped_at_creation: false,
                })
            })
        });
        match access {
            Access::Read => read,
            Access::Write => write,
        }
    }

    fn steps(&self) -> &Steps {
        self.inner.steps.get_or_init(|| {
            let contents: Vec<u32> = (0..MAX_STEPS * STEP_STRIDE / 4)
                .map(|word| {
                    if word % (STEP_STRIDE / 4) == 0 {
                        word / (STEP_STRIDE / 4)
                    } else {
                        0
                    }
                })
                .collect();
            let buffer = self
                .device()
                .create_buffer_init(&wgpu::util::BufferInitDescriptor {
                    label: Some("gatefold steps"),
                    contents: bytemuck::cast_slice(&contents),
                    usage: wgpu::BufferUsages::UNIFORM,
                });
            let entry = layout_entry(
                0,
                wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
            );
            let layout = bind_group_layout(self.device(), "gatefold steps", &[entry]);
            let group = self.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("gatefold steps"),
                layout: &layout,
                entries: &[wgpu::BindGroupEntry {
                    binding: 0,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: &buffer,
                        offset: 0,
                        size: wgpu::BufferSize::new(16),
                    }),
                }],
            });
            Steps { layout, group }
        })
    }

    fn pipeline(
        &self,
        kernel: &Kernel,
        constants: &Constants,
        shared: bool,
    ) -> Result<Arc<Pipeline>, Error> {
        let key = PipelineKey {
            kernel: *kernel,
            constants: constants.clone(),
            shared,
        };
        let lock = || {
            self.inner
                .pipelines
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(pipeline) = lock().get(&key) {
            return Ok(pipeline.clone());
        }
        // compiled without the lock: two threads may both compile a kernel, neither waits for the other
        let pipeline = Arc::new(self.compile_pipeline(&key)?);
        Ok(lock().entry(key).or_insert(pipeline).clone())
    }

    fn compile_pipeline(&self, key: &PipelineKey) -> Result<Pipeline, Error> {
        let device = self.device();
        let name = key.kernel.name;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(key.kernel.source(&key.constants, key.shared).into()),
        };
        let module = match self.inner.checks {
            Checks::Checked => device.create_shader_module(descriptor),
            // SAFETY: our kernels index their bindings only below the sizes that `window` has checked and
            // their arrays below constant bounds; the canaries and the checked runs of tests/ watch it.
            // A caller's own kernel takes this promise over, or asks for `Checks::Checked`.
            Checks::Trusted => unsafe {
                device.create_shader_module_trusted(
                    descriptor,
                    wgpu::ShaderRuntimeChecks::unchecked(),
                )
            },
        };
        let uniform = wgpu::BufferBindingType::Uniform;
        let storage = key
            .kernel
            .storage
            .iter()
            .map(|access| wgpu::BufferBindingType::Storage {
                read_only: *access == Access::Read && !key.shared,
            });
        let entries: Vec<_> = std::iter::once(uniform)
            .chain(storage)
            .enumerate()
            .map(|(binding, ty)| {
                let ty = wgpu::BindingType::Buffer {
                    ty,
                    has_dynamic_offset: false,
                    min_binding_size: None,
                };
                layout_entry(binding as u32, ty)
            })
            .collect();
        let layout = bind_group_layout(device, name, &entries);
        let mut layouts = vec![Some(&layout)];
        if key.kernel.stepped {
            layouts.push(Some(&self.steps().layout));
        }
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &layouts,
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(name),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        match ready(scope.pop()).flatten() {
            None => Ok(Pipeline { pipeline, layout }),
            Some(error) => {
                let message = error.to_string();
                Err(Error::Compile {
                    kernel: name,
                    message,
                })
            }
        }
    }
}

/// The result of a future that is complete at once, as wgpu's are on native backends. In a browser it may
/// not be; the error then reaches the host's uncaptured-error handler.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
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

fn layout_entry(binding: u32, ty: wgpu::BindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty,
        count: None,
    }
}

fn bind_group_layout(
    device: &wgpu::Device,
    label: &str,
    entries: &[wgpu::BindGroupLayoutEntry],
) -> wgpu::BindGroupLayout {
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(label),
        entries,
    })
}

/// An operation with its buffers: ready to be recorded, as often as wanted.
#[derive(Debug, Clone)]
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

    /// The dispatches that [`record`](Self::record) encodes.
    pub fn num_dispatches(&self) -> u32 {
        self.launches
            .iter()
            .map(|launch| launch.steps.as_ref().map_or(1, |(_, count)| *count))
            .sum()
    }
}
