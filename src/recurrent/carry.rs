//! The kernel that hands states on between the parts of a pass.

use std::borrow::Cow;

use crate::gemm::Part;
use crate::kernel::{Access, COMMON, Dispatch, Kernel, Operand, fold_grid, params};

params! {
    struct Params {
        num_elements: u32,
        flags: u32,
        from_h_first: u32,
        from_c_first: u32,
        to_h_first: u32,
        to_c_first: u32,
        run_len: u32,
        run_stride: u32,
    }
}

const KERNEL: Kernel = Kernel {
    name: "recurrent_carry",
    enables: &[],
    parts: Cow::Borrowed(&[COMMON, include_str!("../../shaders/recurrent_carry.wgsl")]),
    params: Params::FIELDS,
    storage: &[Access::Read, Access::Read, Access::Write, Access::Write],
    stepped: false,
};

/// [`carry`] of states that may be of two lengths; nothing where there is no destination.
pub(super) fn carry_each(from: [Option<Part>; 2], to: [Option<Part>; 2]) -> Vec<Dispatch> {
    let [from_h, from_c] = from;
    let [to_h, to_c] = to.map(|to| to.filter(|to| !to.1.is_empty()));
    let len = |part: &Option<Part>| part.as_ref().map(|(_, range)| range.end - range.start);
    // a source without a destination would not be read
    let from_h = from_h.filter(|_| to_h.is_some());
    let from_c = from_c.filter(|_| to_c.is_some());
    let of_h = (to_h.is_some()).then(|| [[from_h.clone(), None], [to_h.clone(), None]]);
    let of_c = (to_c.is_some()).then(|| [[from_c.clone(), None], [to_c.clone(), None]]);
    if len(&to_h) == len(&to_c) && to_h.is_some() {
        return vec![carry([from_h, from_c], [to_h, to_c])];
    }
    let each = of_h.into_iter().chain(of_c);
    each.map(|[from, to]| carry(from, to)).collect()
}

/// Copies `from_h` to `to_h` and `from_c` to `to_c`, all of one length; zeros from a source that is absent.
pub(super) fn carry(from: [Option<Part>; 2], to: [Option<Part>; 2]) -> Dispatch {
    carry_runs(from, to, [1, 1])
}

/// [`carry`] with `from_h` in runs of some elements, the first number, that lie the second one apart.
pub(super) fn carry_runs(
    from: [Option<Part>; 2],
    to: [Option<Part>; 2],
    [run_len, run_stride]: [u32; 2],
) -> Dispatch {
    let [from_h, from_c] = from;
    let [to_h, to_c] = to;
    let lens = [&to_h, &to_c].map(|to| to.as_ref().map_or(0, |(_, to)| to.end - to.start));
    let num_elements = lens[0].max(lens[1]);
    let parts = [from_h, from_c, to_h, to_c];
    let flags = parts
        .iter()
        .rev()
        .fold(0, |bits, part| bits << 1 | u32::from(part.is_some()));
    let operands = parts.map(|part| match part {
        Some((name, range)) => Operand::elements(name, range),
        None => (Operand::Unused, 0),
    });
    let params = Params {
        num_elements: num_elements as u32,
        flags,
        from_h_first: operands[0].1,
        from_c_first: operands[1].1,
        to_h_first: operands[2].1,
        to_c_first: operands[3].1,
        run_len,
        run_stride,
    };
    Dispatch {
        kernel: KERNEL,
        constants: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: operands.into_iter().map(|(operand, _)| operand).collect(),
        grid: fold_grid(num_elements.div_ceil(64)),
        steps: 1,
    }
}
