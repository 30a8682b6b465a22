use std::fmt;

use crate::kernel::Dispatch;
use crate::{Capabilities, Error};

/// Which of a device's abilities a kernel builds on. More variants follow; each can be forced.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Workgroup memory only: runs everywhere.
    Portable,
    /// Subgroup operations, at any subgroup size.
    Subgroup,
    /// Matrix units: products of f16 factors, summed in f32; in recurrences two halves for each f32.
    Cooperative,
}

impl Variant {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Portable, Self::Subgroup, Self::Cooperative];

    /// Those that a device with `capabilities` can run, best first, for an operation that has no use for matrix units.
    pub fn available(capabilities: &Capabilities) -> impl Iterator<Item = Self> + use<> {
        let subgroups = capabilities.lanes_within_subgroup(4) == 4;
        subgroups
            .then_some(Self::Subgroup)
            .into_iter()
            .chain([Self::Portable])
    }

    /// The one that is forced, if it is available, else the best: the first.
    pub(crate) fn choose(
        forced: Option<Self>,
        mut available: impl Iterator<Item = Self>,
        op: &'static str,
    ) -> Result<Self, Error> {
        match forced {
            None => Ok(available.next().unwrap_or(Self::Portable)),
            Some(forced) if available.any(|variant| variant == forced) => Ok(forced),
            Some(forced) => {
                let feature = format!("what the {forced} variant of {op} needs").into();
                Err(Error::Feature { feature })
            }
        }
    }

    /// The name, as the program's `--variant` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Subgroup => "subgroup",
            Self::Cooperative => "cooperative",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How an operation will run a shape: plain data, decided without a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What it builds on.
    pub variant: Variant,
    /// The algorithm and tile in words, for reports: `"blocked, 64 queries x 32 keys"`.
    pub describe: String,
    /// The launches, in order.
    pub dispatches: Vec<Dispatch>,
    /// Bytes of scratch that the caller provides.
    pub scratch_size: u64,
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes that must be read and written at least.
    pub bytes: f64,
}

impl Plan {
    /// This and then `next`, which begins when this is complete and reuses its scratch.
    pub fn then(mut self, next: Self) -> Self {
        self.dispatches.extend(next.dispatches);
        self.describe = format!("{}; {}", self.describe, next.describe);
        self.scratch_size = self.scratch_size.max(next.scratch_size);
        self.flops += next.flops;
        self.bytes += next.bytes;
        self
    }
}

/// More than any machine holds, and sums of a few such numbers fit 64 bits.
const MAX_ELEMENTS: u128 = 1 << 56;

/// More launches than any call needs whose tensors fit a machine: each but the last fills a binding.
const MAX_DISPATCHES: u64 = 1 << 16;

/// Whether 64 bits can number the bytes of a tensor, with room for sums.
pub(crate) fn check_elements(elements: u128) -> Result<(), Error> {
    if elements > MAX_ELEMENTS {
        return Err(Error::Limit {
            limit: "max_buffer_size",
            needed: u64::try_from(4 * elements).unwrap_or(u64::MAX),
            allowed: 4 * MAX_ELEMENTS as u64,
        });
    }
    Ok(())
}

/// Whether a plan has so few dispatches that a list of them makes sense.
pub(crate) fn check_dispatches(count: u64) -> Result<(), Error> {
    if count > MAX_DISPATCHES {
        return Err(Error::Limit {
            limit: "launches of one call",
            needed: count,
            allowed: MAX_DISPATCHES,
        });
    }
    Ok(())
}
