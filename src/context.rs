use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use wgpu::util::DeviceExt;

use crate::kernel::{Access, Constants, Dispatch, Kernel, MAX_STEPS, WINDOW_ALIGNMENT};
use crate::{Capabilities, Error};

/// Whether this library's compiled shaders keep the checks that naga adds (bounds of arrays, bounded loops).
/// A caller's own always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Checks {
    /// Without: our kernels stay within their bindings by themselves, and the tests' canaries watch it.
    #[default]
    Trusted,
    /// With, to find out whether a fault is ours.
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
    checks: Checks,
}

#[derive(Debug)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// The uniform of step numbers, one per 256 bytes, that every stepped dispatch reads at a dynamic offset:
/// a thousand launches need one bind group and no buffer of their own.
#[derive(Debug)]
pub(crate) struct Steps {
    layout: wgpu::BindGroupLayout,
    pub group: wgpu::BindGroup,
}

pub(crate) const STEP_STRIDE: u32 = 256;

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

    /// How the kernels of this library are compiled; a caller's own always keep their checks.
    pub(crate) fn own_checks(&self) -> Checks {
        self.inner.checks
    }

    /// Compiles what `dispatches` of the caller's own need and is not compiled yet.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's message.
    pub fn compile(&self, dispatches: &[Dispatch]) -> Result<(), Error> {
        dispatches
            .iter()
            .try_for_each(|dispatch| self.pipeline(dispatch, false, Checks::Checked).map(drop))
    }

    /// [`compile`](Self::compile) for dispatches that an operation of this library has planned.
    pub(crate) fn compile_own(&self, dispatches: &[Dispatch]) -> Result<(), Error> {
        dispatches
            .iter()
            .try_for_each(|dispatch| self.pipeline(dispatch, false, self.own_checks()).map(drop))
    }

    /// What stands at a binding that a variant does not touch. Reading and writing have a buffer each,
    /// since wgpu refuses one in both uses.
    pub(crate) fn filler(&self, access: Access) -> &wgpu::Buffer {
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

    pub(crate) fn steps(&self) -> &Steps {
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

    pub(crate) fn pipeline(
        &self,
        dispatch: &Dispatch,
        shared: bool,
        checks: Checks,
    ) -> Result<Arc<Pipeline>, Error> {
        let key = PipelineKey {
            kernel: dispatch.kernel.clone(),
            constants: dispatch.constants.clone(),
            shared,
            checks,
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
        let module = match key.checks {
            Checks::Checked => device.create_shader_module(descriptor),
            // SAFETY: only what our operations have planned comes here (`bind_own`, `compile_own`). Those
            // kernels index their bindings only below the sizes that `window` has checked and their arrays
            // below constant bounds; the canaries and the checked runs of tests/ watch it.
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
