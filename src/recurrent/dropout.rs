//! Dropout between layers.

use std::borrow::Cow;

use super::RecurrentConfig;
use crate::gemm::Part;
use crate::kernel::{Access, COMMON, Dispatch, Kernel, Operand, fold_grid, params};
use crate::philox;

params! {
    struct Params {
        first_low: u32,
        first_high: u32,
        num_elements: u32,
        num_counters: u32,
        layer: u32,
        seed_low: u32,
        seed_high: u32,
        threshold: u32,
        scale: f32,
        output_first: u32,
        dropped_first: u32,
    }
}

const DROPOUT: Kernel = Kernel {
    name: "recurrent_dropout",
    enables: &[],
    parts: Cow::Borrowed(&[
        COMMON,
        philox::PART,
        include_str!("../../shaders/recurrent_dropout.wgsl"),
    ]),
    params: Params::FIELDS,
    storage: &[Access::Read, Access::Write],
    stepped: false,
};

/// Drops some of the elements of `output` on their way to `dropped`; the first of them is element `first` of
/// the output of `layer`.
pub(super) fn dropout(
    config: &RecurrentConfig,
    seed: u64,
    layer: u32,
    first: u64,
    output: Part,
    dropped: Part,
) -> Dispatch {
    let num_elements = output.1.end - output.1.start;
    let num_counters = (first % 4 + num_elements).div_ceil(4);
    let (output, output_first) = Operand::elements(output.0, output.1);
    let (dropped, dropped_first) = Operand::elements(dropped.0, dropped.1);
    let params = Params {
        first_low: first as u32,
        first_high: (first >> 32) as u32,
        num_elements: num_elements as u32,
        num_counters: num_counters as u32,
        layer,
        seed_low: seed as u32,
        seed_high: (seed >> 32) as u32,
        threshold: philox::threshold(config.dropout),
        scale: (1.0 / (1.0 - f64::from(config.dropout))) as f32,
        output_first,
        dropped_first,
    };
    Dispatch {
        kernel: DROPOUT,
        constants: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
        operands: vec![output, dropped],
        grid: fold_grid(num_counters.div_ceil(64)),
        steps: 1,
    }
}
