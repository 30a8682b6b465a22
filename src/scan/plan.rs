//! What a scan of two tensors launches.

use super::sweep::{Field, PART, Slot, Sweep, Tiling};
use super::{ScanConfig, ScanGiven, ScanShape};
use crate::gemm::Part;
use crate::kernel::Access;
use crate::plan::{check_dispatches, check_elements};
use crate::{Capabilities, Error, Plan, Variant};

const TENSORS: &str = include_str!("../../shaders/scan_tensors.wgsl");

const STORAGE: &[Access] = &[
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Write,
    Access::Write,
    Access::Write,
];

impl ScanShape {
    pub(super) fn lanes(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.width)
    }

    /// The elements of `times` in a tensor `[seq_len, batch, width]`.
    pub(super) fn part(&self, name: &'static str, times: &std::ops::Range<u32>) -> Part {
        let lanes = self.lanes();
        (
            name,
            u64::from(times.start) * lanes..u64::from(times.end) * lanes,
        )
    }
}

impl ScanConfig {
    /// How a call runs on a device with `capabilities`; pure.
    ///
    /// # Errors
    /// [`Error::Shape`] for a width of 0, [`Error::Limit`] for steps larger than a binding.
    pub fn plan(
        &self,
        capabilities: &Capabilities,
        shape: ScanShape,
        given: ScanGiven,
    ) -> Result<Plan, Error> {
        let tiling = self.tiling(capabilities, shape)?;
        let lanes = shape.lanes();
        let state = |name, given: bool| given.then_some((name, 0..lanes));
        let sweep = Sweep {
            tiling,
            seq_len: shape.seq_len,
            batch: shape.batch,
            width: shape.width,
            reverse: self.reverse,
            lengths: given.lengths,
            constants: Vec::new(),
            source: &[TENSORS],
            storage: STORAGE,
            backward: false,
            start: state("h_0", given.h_0),
            h_0: None,
            finish: given.h_n,
            scratch: 0,
        };
        let mut dispatches = Vec::new();
        let segments = sweep.segments();
        let pieces = segments.iter().flat_map(|segment| sweep.pieces(segment));
        for segment in pieces.filter(|_| lanes > 0) {
            let tensor = |name| shape.part(name, &segment.times);
            let slots = vec![
                Slot::read(tensor("a"), Field::A),
                Slot::read(tensor("b"), Field::B),
                Slot::optional(state("h_0", given.h_0), Access::Read, Field::H0),
                Slot::apply(tensor("output"), Access::Write, Field::Output),
                Slot::optional(state("h_n", given.h_n), Access::Write, Field::HN),
            ];
            sweep.launch(&segment, slots, &mut dispatches);
        }
        let elements = lanes as f64 * f64::from(shape.seq_len);
        Ok(Plan {
            variant: Variant::Portable,
            describe: tiling.describe(),
            dispatches,
            scratch_size: scratch_size(tiling, lanes),
            flops: 2.0 * elements,
            bytes: 12.0 * elements,
        })
    }

    /// Checks the shape, too.
    pub(super) fn tiling(
        &self,
        capabilities: &Capabilities,
        shape: ScanShape,
    ) -> Result<Tiling, Error> {
        let ScanShape {
            seq_len,
            batch,
            width,
        } = shape;
        if width == 0 {
            return Err(Error::shape("width", width, "at least 1"));
        }
        if seq_len >= 1 << 30 {
            return Err(Error::shape("seq_len", seq_len, "less than 2^30"));
        }
        if self.chunk_len == Some(0) {
            return Err(Error::shape("chunk_len", 0, "at least 1"));
        }
        check_elements(u128::from(seq_len) * u128::from(batch) * u128::from(width))?;
        let tiling = Tiling::choose(
            capabilities,
            seq_len,
            shape.lanes(),
            shape.lanes(),
            self.chunk_len,
        )?;
        check_dispatches(tiling.num_dispatches(seq_len))?;
        Ok(tiling)
    }
}

/// Bytes; never none, since nothing empty can be bound.
pub(super) fn scratch_size(tiling: Tiling, lanes: u64) -> u64 {
    4 * tiling.scratch_len(lanes).max(PART)
}
