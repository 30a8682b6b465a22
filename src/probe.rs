//! What can only be found out by trying: how many workgroups run at the same time, and whether matrices that a
//! subgroup holds together are multiplied right.

use std::borrow::Cow;
use std::sync::mpsc;

use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, params};
use crate::{Capabilities, Context, Error};

params! {
    struct Params {
        num_groups: u32,
        spin_bound: u32,
    }
}

const GROUPS: Kernel = Kernel {
    name: "recurrent_probe",
    enables: &[],
    parts: Cow::Borrowed(&[COMMON, include_str!("../shaders/recurrent_probe.wgsl")]),
    params: Params::FIELDS,
    storage: &[Access::Write],
    stepped: false,
};

/// Looks for the others before a workgroup of the probe gives up.
const SPIN_BOUND: u32 = 1 << 14;

/// Words that an invocation of the probe keeps in its registers: with what else it needs, as many as one of the
/// persistent tier's, of which a compute unit then has room for as many as of the probe's.
const HELD_WORDS: u32 = 192;

/// Once may be luck.
const ATTEMPTS: usize = 3;

/// What the probe launches for `num_groups` workgroups; the operand is `words`, 256 bytes of 0.
pub fn probe_dispatch(num_groups: u32) -> Dispatch {
    let params = Params {
        num_groups,
        spin_bound: SPIN_BOUND,
    };
    Dispatch {
        kernel: GROUPS,
        constants: vec![("HELD", Constant::U32(HELD_WORDS))],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: vec![Operand::whole("words", 256)],
        grid: [num_groups, 1, 1],
        steps: 1,
    }
}

/// What the probe launches for cooperative matrices, if `capabilities` have any; the operand is `words`, 256 bytes
/// of 0.
pub fn cooperative_probe_dispatch(capabilities: &Capabilities) -> Option<Dispatch> {
    let edge = capabilities.cooperative?;
    let kernel = Kernel {
        name: "cooperative_probe",
        enables: Capabilities::COOPERATIVE_ENABLES,
        parts: Cow::Owned(vec![
            COMMON,
            cooperative_part(edge),
            include_str!("../shaders/cooperative_probe.wgsl"),
        ]),
        params: &[],
        storage: &[Access::Write],
        stepped: false,
    };
    let subgroup_size = capabilities.fixed_subgroup_size()?;
    Some(Dispatch {
        kernel,
        constants: vec![("SUBGROUP_SIZE", Constant::U32(subgroup_size))],
        params: vec![],
        operands: vec![Operand::whole("words", 4)],
        grid: [1, 1, 1],
        steps: 1,
    })
}

pub(crate) const COOPERATIVE_8: &str = include_str!("../shaders/cooperative_8.wgsl");
pub(crate) const COOPERATIVE_16: &str = include_str!("../shaders/cooperative_16.wgsl");

/// The part of a kernel that names the matrices with `edge` rows and columns.
pub(crate) fn cooperative_part(edge: u32) -> &'static str {
    match edge {
        8 => COOPERATIVE_8,
        _ => COOPERATIVE_16,
    }
}

impl Context {
    /// This context with what can only be found out by trying: how many workgroups run at the same time, which
    /// [`Tier::Persistent`](crate::Tier::Persistent) wants to know before it is planned, and without cooperative
    /// matrices if the device multiplies them wrong.
    ///
    /// Submits to `queue` and waits, some milliseconds at most; call it once, before the operations are
    /// created. On a CPU, whose workgroups run one after the other, they are not counted.
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::Device`].
    pub fn probe(&self, queue: &wgpu::Queue) -> Result<Self, Error> {
        let mut capabilities = *self.capabilities();
        if let Some(edge) = capabilities.cooperative
            && !self.multiplies_right(queue, edge)?
        {
            capabilities.cooperative = None;
        }
        capabilities.concurrent_workgroups = self.concurrent_workgroups(queue)?;
        Ok(Self::with_capabilities(
            self.device(),
            capabilities,
            self.own_checks(),
        ))
    }

    fn concurrent_workgroups(&self, queue: &wgpu::Queue) -> Result<u32, Error> {
        let mut seen = 0;
        if !self.capabilities().cpu {
            for num_groups in (3..10).map(|power| 1 << power) {
                for _ in 0..ATTEMPTS {
                    let [_, met] = self.words_of(queue, probe_dispatch(num_groups))?;
                    if met != num_groups {
                        return Ok(seen);
                    }
                }
                seen = num_groups;
            }
        }
        Ok(seen)
    }

    /// Also false if the kernel does not compile: the feature is experimental.
    fn multiplies_right(&self, queue: &wgpu::Queue, edge: u32) -> Result<bool, Error> {
        let Some(dispatch) = cooperative_probe_dispatch(self.capabilities()) else {
            return Ok(false);
        };
        match self.words_of(queue, dispatch) {
            Ok([right, _]) => Ok(right == edge * edge),
            Err(Error::Compile { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The first two words that a dispatch leaves in place of zeros.
    fn words_of(&self, queue: &wgpu::Queue, dispatch: Dispatch) -> Result<[u32; 2], Error> {
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
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&view[..8]);
        Ok([words[0], words[1]])
    }
}
