//! The adapter that a command runs on.

use gatefold::{Gpu, wgpu};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::{args, report};

/// Who computed, as every report says it.
#[derive(Debug, Clone, Serialize)]
pub struct Adapter {
    pub name: String,
    pub backend: String,
    pub driver: String,
    pub driver_info: String,
    pub device_type: String,
    pub software: bool,
}

impl Adapter {
    pub fn of(info: &wgpu::AdapterInfo) -> Self {
        Self {
            name: info.name.clone(),
            backend: info.backend.to_string(),
            driver: info.driver.clone(),
            driver_info: info.driver_info.clone(),
            device_type: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete",
                wgpu::DeviceType::IntegratedGpu => "integrated",
                wgpu::DeviceType::VirtualGpu => "virtual",
                wgpu::DeviceType::Cpu => "cpu",
                wgpu::DeviceType::Other => "other",
            }
            .into(),
            software: info.device_type == wgpu::DeviceType::Cpu,
        }
    }

    /// Name, backend and driver.
    pub fn describe(&self) -> String {
        let driver = format!("{} {}", self.driver, self.driver_info);
        format!("{} ({}, {})", self.name, self.backend, driver.trim())
    }
}

pub fn open(device: &args::Device) -> Result<Gpu> {
    let gpu = pollster::block_on(async {
        match &device.adapter {
            Some(name) => Gpu::with_adapter(name).await,
            None => Gpu::new().await,
        }
    });
    Ok(gpu?.probed()?)
}

/// Says it aloud when the numbers to come are those of a CPU.
pub fn announce(gpu: &Gpu) {
    if gpu.is_software() {
        let name = gpu.describe();
        report::log(format_args!(
            "note: {name} is a software adapter: it computes on the CPU"
        ));
    }
}

/// Every adapter that `name`, or else `WGPU_ADAPTER_NAME`, fits.
pub fn open_all(name: Option<&str>) -> Result<Vec<Gpu>> {
    let name = name.map(str::to_owned);
    let name = name.or_else(|| std::env::var("WGPU_ADAPTER_NAME").ok());
    let wanted = name.as_deref().unwrap_or_default().to_lowercase();
    let adapters = pollster::block_on(Gpu::adapters());
    let describe = |adapter: &wgpu::Adapter| Adapter::of(&adapter.get_info()).describe();
    let gpus: Result<Vec<_>, _> = adapters
        .iter()
        .filter(|adapter| describe(adapter).to_lowercase().contains(&wanted))
        .map(|adapter| pollster::block_on(Gpu::from_adapter(adapter))?.probed())
        .collect();
    let gpus = gpus?;
    if gpus.is_empty() {
        let wanted = name.map_or("usable".into(), |name| format!("\"{name}\""));
        let seen = adapters.iter().map(describe).collect();
        let error = gatefold::Error::NoAdapter { wanted, seen };
        return Err(Error::from(error));
    }
    Ok(gpus)
}
