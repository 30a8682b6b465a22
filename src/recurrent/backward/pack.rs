//! The packed weights that only the backward pass reads, behind those of the forward pass.

use std::borrow::Cow;

use crate::ElementType;
use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, fold_grid, params};
use crate::recurrent::RecurrentConfig;
use crate::recurrent::pack::PART;

params! {
    struct Params {
        input_size: u32,
        hidden_size: u32,
        state_size: u32,
        num_elements: u32,
        unit_weights_first: u32,
        weight_hr_first: u32,
        weight_ih_first: u32,
        packed_first: u32,
        has_bias: u32,
    }
}

fn kernel(element: ElementType) -> Kernel {
    Kernel {
        name: "recurrent_backward_pack",
        enables: &[],
        parts: Cow::Owned(vec![
            COMMON,
            element.part(),
            include_str!("../../../shaders/recurrent_backward_pack.wgsl"),
        ]),
        params: Params::FIELDS,
        storage: &[
            Access::Read,
            Access::Read,
            Access::Read,
            Access::Read,
            Access::Read,
            Access::Write,
        ],
        stepped: false,
    }
}

/// Where the parts of one direction's weights lie, in elements from its start.
#[derive(Debug, Clone, Copy)]
pub(in crate::recurrent) struct PackedBackward {
    pub unit_weights: u64,
    pub weight_hr: u64,
    pub weight_ih: u64,
    pub len: u64,
}

impl RecurrentConfig {
    pub(in crate::recurrent) fn packed_backward(&self, layer: u32) -> PackedBackward {
        let hidden = u64::from(self.hidden_size);
        let gate_rows = u64::from(self.cell.num_gates()) * hidden;
        let state = u64::from(self.state_size());
        let gates = u64::from(self.cell.num_gates());
        let unit_weights = (hidden.next_multiple_of(4) * gates * state).next_multiple_of(PART);
        let units_len = u64::from(self.num_unit_weights()) * hidden;
        let weight_hr = (unit_weights + units_len).next_multiple_of(PART);
        let projection = match self.proj_size {
            Some(_) => state.next_multiple_of(4) * hidden,
            None => 0,
        };
        let weight_ih = (weight_hr + projection).next_multiple_of(PART);
        let input = u64::from(self.layer_input_size(layer));
        PackedBackward {
            unit_weights,
            weight_hr,
            weight_ih,
            len: (weight_ih + gate_rows * input).next_multiple_of(PART),
        }
    }

    /// First element of a direction of a layer, from the start of the packed weights.
    pub(in crate::recurrent) fn packed_backward_start(&self, layer: u32, direction: u32) -> u64 {
        let directions = u64::from(self.direction.count());
        let before: u64 = (0..layer)
            .map(|layer| directions * self.packed_backward(layer).len)
            .sum();
        let forward = self.packed_start(self.num_layers, 0);
        forward + before + u64::from(direction) * self.packed_backward(layer).len
    }

    pub(in crate::recurrent) fn pack_backward_dispatch(
        &self,
        layer: u32,
        direction: u32,
        has_bias: bool,
    ) -> Dispatch {
        let packed = self.packed_backward(layer);
        let start = self.packed_backward_start(layer, direction);
        let gate_rows = u64::from(self.cell.num_gates() * self.hidden_size);
        let input_size = self.layer_input_size(layer);
        let (operand, packed_first) = Operand::elements("packed", start..start + packed.len);
        let params = Params {
            input_size,
            hidden_size: self.hidden_size,
            state_size: self.state_size(),
            num_elements: packed.len as u32,
            unit_weights_first: packed.unit_weights as u32,
            weight_hr_first: packed.weight_hr as u32,
            weight_ih_first: packed.weight_ih as u32,
            packed_first,
            has_bias: has_bias.into(),
        };
        let optional = |name, given: bool, elements: u64| match given {
            true => Operand::typed(name, 0..elements, self.weights).0,
            false => Operand::Unused,
        };
        Dispatch {
            kernel: kernel(self.weights),
            constants: vec![
                ("NUM_GATES", Constant::U32(self.cell.num_gates())),
                ("NUM_UNIT_WEIGHTS", Constant::U32(self.num_unit_weights())),
                ("PEEPHOLE", Constant::Bool(self.peephole)),
                ("PROJECTED", Constant::Bool(self.proj_size.is_some())),
            ],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![
                optional("weight_ih", true, gate_rows * u64::from(input_size)),
                optional("weight_hh", true, gate_rows * u64::from(self.state_size())),
                optional("bias_hh", has_bias, gate_rows),
                optional("peephole", self.peephole, 3 * u64::from(self.hidden_size)),
                optional(
                    "weight_hr",
                    self.proj_size.is_some(),
                    u64::from(self.state_size()) * u64::from(self.hidden_size),
                ),
                operand,
            ],
            grid: fold_grid(packed.len.div_ceil(64)),
            steps: 1,
        }
    }
}
