//! How many workgroups run at the same time.

use std::borrow::Cow;
use std::sync::mpsc;

use crate::kernel::{Access, COMMON, Dispatch, Kernel, Operand, params};
use crate::{Capabilities, Context, Error};

params! {
    struct Params {
        num_groups: u32,
        spin_bound: u32,
    }
}

const KERNEL: Kernel = Kernel {
    name: "recurrent_probe",
    enables: &[],
    parts: Cow::Borrowed(&[COMMON, include_str!("../../shaders/recurrent_probe.wgsl")]),
    params: Params::FIELDS,
    storage: &[Access::Write],
    stepped: false,
};

/// Looks for the others before a workgroup of the probe gives up.
const SPIN_BOUND: u32 = 1 << 14;

/// Once may be luck.
const ATTEMPTS: usize = 3;

/// What the probe launches for `num_groups` workgroups; the operand is `words`, 256 bytes of 0.
pub fn probe_dispatch(num_groups: u32) -> Dispatch {
    let params = Params {
        num_groups,
        spin_bound: SPIN_BOUND,
    };
    Dispatch {
        kernel: KERNEL,
        constants: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: vec![Operand::whole("words", 8)],
        grid: [num_groups, 1, 1],
        steps: 1,
    }
}

impl Context {
    /// This context with what can only be found out by trying: how many workgroups run at the same time, which
    /// [`Tier::Persistent`](crate::Tier::Persistent) wants to know before it is planned.
    ///
    /// Submits to `queue` and waits, some milliseconds at most; call it once, before the operations are
    /// created. On a CPU nothing is tried: its workgroups run one after the other.
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::Device`].
    pub fn probe(&self, queue: &wgpu::Queue) -> Result<Self, Error> {
        let mut concurrent_workgroups = 0;
        if !self.capabilities().cpu {
            for num_groups in (3..10).map(|power| 1 << power) {
                for _ in 0..ATTEMPTS {
                    if !self.all_meet(queue, num_groups)? {
                        return Ok(self.with_concurrent(concurrent_workgroups));
                    }
                }
                concurrent_workgroups = num_groups;
            }
        }
        Ok(self.with_concurrent(concurrent_workgroups))
    }

    fn with_concurrent(&self, concurrent_workgroups: u32) -> Self {
        let capabilities = Capabilities {
            concurrent_workgroups,
            ..*self.capabilities()
        };
        Self::with_capabilities(self.device(), capabilities, self.own_checks())
    }

    fn all_meet(&self, queue: &wgpu::Queue, num_groups: u32) -> Result<bool, Error> {
        let device = self.device();
        let buffer = |label, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 256,
                usage,
                mapped_at_creation: false,
            })
        };
        let words = buffer(
            "gatefold probe",
            wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        );
        let staging = buffer(
            "gatefold probe, read back",
            wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        );
        let dispatch = probe_dispatch(num_groups);
        let bound = self.bind_own(&[dispatch], &[("words", words.slice(..))])?;
        let mut encoder = device.create_command_encoder(&Default::default());
        bound.record(&mut encoder.begin_compute_pass(&Default::default()));
        encoder.copy_buffer_to_buffer(&words, 0, &staging, 0, 256);
        queue.submit([encoder.finish()]);
        let (sender, receiver) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
            // the receiver is gone only if the wait failed, which is reported there
            let _ = sender.send(mapped);
        });
        let failed = |error: &dyn std::fmt::Display| Error::Device(error.to_string());
        device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| failed(&error))?;
        match receiver.recv() {
            Ok(mapped) => mapped.map_err(|error| failed(&error))?,
            Err(_) => return Err(Error::Device("a buffer was not mapped".into())),
        }
        let view = staging
            .get_mapped_range(..)
            .map_err(|error| failed(&error))?;
        let met: Vec<u32> = bytemuck::pod_collect_to_vec(&view[..8]);
        Ok(met[1] == num_groups)
    }
}
