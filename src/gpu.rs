use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use bytemuck::Pod;
use wgpu::util::DeviceExt;

use crate::{Capabilities, Checks, Context, Error};

/// A device of its own, for programs, tests and examples that have none: picks an adapter, uploads, runs,
/// downloads. Errors that wgpu reports later are returned by the call that finds them.
#[derive(Debug, Clone)]
pub struct Gpu {
    info: wgpu::AdapterInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    context: Context,
    failure: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// Opens the adapter that `WGPU_BACKEND` and `WGPU_ADAPTER_NAME` name, else the best one: a software
    /// adapter only when there is no other (see [`is_software`](Self::is_software)).
    ///
    /// # Errors
    /// [`Error::NoAdapter`], [`Error::Device`].
    pub async fn new() -> Result<Self, Error> {
        Self::open(std::env::var("WGPU_ADAPTER_NAME").ok().as_deref()).await
    }

    /// Opens the first adapter, best first, whose name, backend or driver contains `name`, whatever its case.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], [`Error::Device`].
    pub async fn with_adapter(name: &str) -> Result<Self, Error> {
        Self::open(Some(name)).await
    }

    /// The adapters of this machine that can compute, best first.
    pub async fn adapters() -> Vec<wgpu::Adapter> {
        let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        let backends = descriptor.backends;
        let mut adapters = wgpu::Instance::new(descriptor)
            .enumerate_adapters(backends)
            .await;
        adapters.retain(|adapter| {
            let flags = adapter.get_downlevel_capabilities().flags;
            flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
                && adapter.limits().max_compute_invocations_per_workgroup >= 64
        });
        adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
        adapters
    }

    async fn open(name: Option<&str>) -> Result<Self, Error> {
        let adapters = Self::adapters().await;
        let fits = |adapter: &&wgpu::Adapter| {
            let wanted = name.unwrap_or_default().to_lowercase();
            describe(&adapter.get_info())
                .to_lowercase()
                .contains(&wanted)
        };
        match adapters.iter().find(fits) {
            Some(adapter) => Self::from_adapter(adapter).await,
            None => Err(Error::NoAdapter {
                wanted: name.map_or("usable".into(), |name| format!("\"{name}\"")),
                seen: adapters
                    .iter()
                    .map(|adapter| describe(&adapter.get_info()))
                    .collect(),
            }),
        }
    }

    /// Opens a device on `adapter` with all features and limits that our kernels like.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub async fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self, Error> {
        let matrices = adapter.features() & cooperative_matrices(&adapter.get_info());
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("gatefold"),
            required_features: Context::wanted_features(adapter) | matrices,
            required_limits: Context::wanted_limits(adapter),
            experimental_features: match matrices.is_empty() {
                true => wgpu::ExperimentalFeatures::disabled(),
                // SAFETY: the one experimental feature is cooperative matrices. Kernels with them access memory within
                // what they declare, and `Context::probe` takes the matrices away where they compute wrong.
                false => unsafe { wgpu::ExperimentalFeatures::enabled() },
            },
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|error| Error::Device(error.to_string()))?;
        let failure = Arc::new(Mutex::new(None));
        let uncaptured = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            note(&uncaptured, error.to_string());
        }));
        let lost = failure.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&lost, format!("device lost: {message}"));
            }
        });
        let capabilities = Capabilities::of(&device);
        let capabilities = match matrices.is_empty() {
            true => capabilities,
            false => capabilities.with_cooperative(&adapter.cooperative_matrix_properties()),
        };
        let context = Context::with_capabilities(&device, capabilities, Checks::default());
        Ok(Self {
            info: adapter.get_info(),
            device,
            queue,
            context,
            failure,
        })
    }

    /// The same device with a context that knows how many workgroups run at the same time, see
    /// [`Context::probe`].
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::Device`].
    pub fn probed(self) -> Result<Self, Error> {
        let context = self.context.probe(&self.queue)?;
        Ok(Self { context, ..self })
    }

    /// The same device with a context that uses less of it, or keeps naga's checks.
    pub fn with_capabilities(&self, capabilities: Capabilities, checks: Checks) -> Self {
        let context = Context::with_capabilities(&self.device, capabilities, checks);
        Self {
            context,
            ..self.clone()
        }
    }

    /// The context that operations are created in.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// Its queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// The adapter that was picked.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// Name, backend and driver of the adapter in one line.
    pub fn describe(&self) -> String {
        describe(&self.info)
    }

    /// Whether the adapter computes on the CPU.
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// A storage buffer with `contents`; never empty, so that a tensor without elements can be bound.
    ///
    /// # Errors
    /// [`Error::Limit`] for more than the device's buffers can hold, [`Error::Device`] without memory.
    pub fn upload<T: Pod>(&self, label: &str, contents: &[T]) -> Result<wgpu::Buffer, Error> {
        let bytes: &[u8] = bytemuck::cast_slice(contents);
        if bytes.is_empty() {
            return self.zeros(label, 4);
        }
        self.check_size(bytes.len() as u64)?;
        let buffer = self
            .device
            .create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: Some(label),
                contents: bytes,
                usage: USAGE,
            });
        self.check()?;
        Ok(buffer)
    }

    /// A storage buffer of `size` bytes, rounded up to a whole word, of zeros.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn zeros(&self, label: &str, size: u64) -> Result<wgpu::Buffer, Error> {
        self.check_size(size)?;
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: size.max(4).next_multiple_of(4),
            usage: USAGE,
            mapped_at_creation: false,
        });
        self.check()?;
        Ok(buffer)
    }

    /// Records one compute pass and submits it.
    ///
    /// # Errors
    /// What `record` returns, and [`Error::Device`].
    pub fn run(
        &self,
        record: impl FnOnce(&mut wgpu::ComputePass<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        record(&mut encoder.begin_compute_pass(&Default::default()))?;
        self.queue.submit([encoder.finish()]);
        self.check()
    }

    /// Waits until everything submitted is done.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn wait(&self) -> Result<(), Error> {
        // wgpu panics when the device is lost while it polls
        let polled = catch_unwind(AssertUnwindSafe(|| {
            self.device
                .poll(wgpu::PollType::wait_indefinitely())
                .map_err(|error| error.to_string())
        }));
        match polled {
            Ok(Ok(_)) => self.check(),
            Ok(Err(message)) => Err(Error::Device(message)),
            Err(_) => Err(Error::Device("lost while waiting for it".into())),
        }
    }

    /// Reads a whole buffer back, after everything submitted before.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn download<T: Pod>(&self, buffer: &wgpu::Buffer) -> Result<Vec<T>, Error> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("gatefold download"),
            size: buffer.size(),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
            // the receiver is gone only if the wait failed, which is reported there
            let _ = sender.send(mapped);
        });
        self.wait()?;
        // the callback may be running on another thread that polls this device
        match receiver.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Error::Device(error.to_string())),
            Err(_) => return Err(Error::Device("a buffer was not mapped".into())),
        }
        let view = staging
            .get_mapped_range(..)
            .map_err(|error| Error::Device(error.to_string()))?;
        Ok(bytemuck::pod_collect_to_vec(&view))
    }

    fn check_size(&self, size: u64) -> Result<(), Error> {
        let allowed = self.device.limits().max_buffer_size;
        if size > allowed {
            return Err(Error::Limit {
                limit: "max_buffer_size",
                needed: size,
                allowed,
            });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure
            .take()
            .map_or(Ok(()), |message| Err(Error::Device(message)))
    }
}

const USAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

fn note(failure: &Mutex<Option<String>>, message: String) {
    failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert(message);
}

fn rank(info: &wgpu::AdapterInfo) -> (u8, u8) {
    let device = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    // the same device may show up through a native API and through OpenGL on top of it
    (device, (info.backend == wgpu::Backend::Gl).into())
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
    format!("{} ({}, {})", info.name, info.backend, driver.trim())
}

/// The feature of cooperative matrices, where it can be true. wgpu takes a list of shapes for the feature and panics
/// in `request_device` where a driver has the one without the other, as Mesa's llvmpipe does when its subgroups have
/// fewer than eight lanes.
fn cooperative_matrices(info: &wgpu::AdapterInfo) -> wgpu::Features {
    match info.device_type == wgpu::DeviceType::Cpu && info.subgroup_min_size < 8 {
        true => wgpu::Features::empty(),
        false => wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
    }
}
