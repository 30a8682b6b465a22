/// What a device can do, as far as our kernels care. Plain data: a test or a host may take something away
/// (see [`Context::with_capabilities`](crate::Context::with_capabilities)) so that one adapter stands for many.
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
    /// Workgroups that were seen to run at the same time: 0 until a
    /// [`Context::probe`](crate::Context::probe) has looked.
    pub concurrent_workgroups: u32,
    /// Rows and columns of the cooperative matrices, 8 or 16: f16 factors, f32 sums. `None` until
    /// [`with_cooperative`](Self::with_cooperative) has been told.
    pub cooperative: Option<u32>,
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
            concurrent_workgroups: 0,
            cooperative: None,
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
            concurrent_workgroups: 0,
            cooperative: None,
        }
    }

    /// What WGSL with cooperative matrices begins with.
    pub(crate) const COOPERATIVE_ENABLES: &[&str] = &["f16", "wgpu_cooperative_matrix"];

    /// The same with the cooperative matrices among `properties`
    /// ([`wgpu::Adapter::cooperative_matrix_properties`]) that kernels here can use: as large as possible, if the
    /// subgroup size is one number and there is f16. The device must have been created with
    /// [`wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX`], and [`Context::probe`](crate::Context::probe) finds out
    /// whether they compute right.
    pub fn with_cooperative(self, properties: &[wgpu::CooperativeMatrixProperties]) -> Self {
        let offered = |edge: &u32| {
            properties.iter().any(|offer| {
                [offer.m_size, offer.n_size, offer.k_size] == [*edge; 3]
                    && offer.ab_type == wgpu::CooperativeScalarType::F16
                    && offer.cr_type == wgpu::CooperativeScalarType::F32
            })
        };
        let able = self.f16 && self.fixed_subgroup_size().is_some();
        Self {
            cooperative: [16, 8].into_iter().find(offered).filter(|_| able),
            ..self
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
