//! Weights: from PyTorch's layout to the kernels', and where their gradients lie.

use std::borrow::Cow;
use std::ops::Range;

use super::{MinRecurrent, MinRecurrentConfig};
use crate::Error;
use crate::kernel::{Access, Dispatch, Kernel, Operand, fold_grid, params};
use crate::scan::PART;

const PACK: &str = include_str!("../../shaders/min_recurrent_pack.wgsl");

/// The weights of a layer, f32, as a `torch.nn.Linear` has them.
#[derive(Debug, Clone, Copy)]
pub struct MinRecurrentWeights<'a> {
    /// `[num_gates * hidden_size, input_size of the layer]`
    pub weight: wgpu::BufferSlice<'a>,
    /// `[num_gates * hidden_size]`; zeros if absent.
    pub bias: Option<wgpu::BufferSlice<'a>>,
}

params! {
    struct Params {
        input_size: u32,
        gate_rows: u32,
        num_elements: u32,
        bias_first: u32,
        weight_first: u32,
        packed_first: u32,
        has_bias: u32,
    }
}

/// Where the parts of a layer lie in the packed weights, in elements.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    pub transposed: Range<u64>,
    pub bias: Range<u64>,
    pub weight: Range<u64>,
    end: u64,
}

impl MinRecurrentConfig {
    /// Length of what `layer` reads.
    pub(super) fn layer_input_size(&self, layer: u32) -> u32 {
        match layer {
            0 => self.input_size,
            _ => self.hidden_size,
        }
    }

    pub(super) fn gate_rows(&self) -> u64 {
        u64::from(self.cell.num_gates()) * u64::from(self.hidden_size)
    }

    fn num_weights(&self, layer: u32) -> u64 {
        self.gate_rows() * u64::from(self.layer_input_size(layer))
    }

    pub(super) fn packed(&self, layer: u32) -> Packed {
        let len = |layer| {
            let weights = self.num_weights(layer).next_multiple_of(PART);
            2 * weights + self.gate_rows().next_multiple_of(PART)
        };
        let start: u64 = (0..layer).map(len).sum();
        let weights = self.num_weights(layer);
        let bias = start + weights.next_multiple_of(PART);
        let weight = bias + self.gate_rows().next_multiple_of(PART);
        Packed {
            transposed: start..start + weights,
            bias: bias..bias + self.gate_rows(),
            weight: weight..weight + weights,
            end: start + len(layer),
        }
    }

    /// Elements of the largest layer in the packed weights.
    pub(super) fn largest_packed_layer(&self) -> u64 {
        let len = |layer| {
            let packed = self.packed(layer);
            packed.end - packed.transposed.start
        };
        len(0).max(len(self.num_layers.min(2) - 1))
    }

    /// Bytes of the packed weights.
    pub fn packed_size(&self) -> u64 {
        match self.num_layers.checked_sub(1) {
            Some(last) => 4 * self.packed(last).end,
            None => 0,
        }
    }

    /// Where the gradients of a layer lie in `grad_weights`, in elements: that of its weight, that of its bias, in
    /// the shapes of [`MinRecurrentWeights`].
    pub fn gradient_elements(&self, layer: u32) -> [Range<u64>; 2] {
        let len = |layer| {
            let weights = self.num_weights(layer).next_multiple_of(PART);
            weights + self.gate_rows().next_multiple_of(PART)
        };
        let weight: u64 = (0..layer).map(len).sum();
        let bias = weight + self.num_weights(layer).next_multiple_of(PART);
        [
            weight..weight + self.num_weights(layer),
            bias..bias + self.gate_rows(),
        ]
    }

    /// Bytes of `grad_weights`.
    pub fn gradient_size(&self) -> u64 {
        match self.num_layers.checked_sub(1) {
            Some(last) => 4 * self.gradient_elements(last)[1].end,
            None => 0,
        }
    }

    /// The dispatches that pack each layer, in order; the operands are named as in [`MinRecurrentWeights`].
    pub fn pack_dispatches(&self) -> Vec<Dispatch> {
        (0..self.num_layers)
            .map(|layer| self.pack_dispatch(layer, true))
            .collect()
    }

    fn pack_dispatch(&self, layer: u32, has_bias: bool) -> Dispatch {
        let packed = self.packed(layer);
        let start = packed.transposed.start;
        let (operand, packed_first) = Operand::elements("packed", start..packed.end);
        let num_elements = packed.end - start;
        let params = Params {
            input_size: self.layer_input_size(layer),
            gate_rows: self.gate_rows() as u32,
            num_elements: num_elements as u32,
            bias_first: (packed.bias.start - start) as u32,
            weight_first: (packed.weight.start - start) as u32,
            packed_first,
            has_bias: has_bias.into(),
        };
        let bias = match has_bias {
            true => Operand::whole("bias", 4 * self.gate_rows()),
            false => Operand::Unused,
        };
        Dispatch {
            kernel: Kernel {
                name: "min_recurrent_pack",
                enables: &[],
                parts: Cow::Borrowed(&[PACK]),
                params: Params::FIELDS,
                storage: &[Access::Read, Access::Read, Access::Write],
                stepped: false,
            },
            constants: vec![],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                Operand::whole("weight", 4 * self.num_weights(layer)),
                bias,
                operand,
            ],
            grid: fold_grid(num_elements.div_ceil(64)),
            steps: 1,
        }
    }
}

impl MinRecurrent {
    /// Bytes that [`pack_weights`](Self::pack_weights) writes.
    pub fn packed_size(&self) -> u64 {
        self.config.packed_size()
    }

    /// Records the repacking of all layers' weights into `packed`: once, before the first call that uses them.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of layers; those of [`Context::bind`](crate::Context::bind).
    pub fn pack_weights(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        weights: &[MinRecurrentWeights<'_>],
        packed: wgpu::BufferSlice<'_>,
    ) -> Result<(), Error> {
        let expected = self.config.num_layers;
        if weights.len() != expected as usize {
            let expected = format!("num_layers = {expected}");
            return Err(Error::shape("number of weights", weights.len(), expected));
        }
        for (layer, weights) in (0..).zip(weights) {
            let mut slices = vec![("weight", weights.weight), ("packed", packed)];
            slices.extend(weights.bias.map(|bias| ("bias", bias)));
            let dispatch = self.config.pack_dispatch(layer, weights.bias.is_some());
            self.context.bind_own(&[dispatch], &slices)?.record(pass);
        }
        Ok(())
    }
}
