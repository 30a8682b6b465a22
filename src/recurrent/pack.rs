//! Weights in PyTorch's layout, and the one in which the kernels read them.

use std::borrow::Cow;

use super::{Cell, Recurrent, RecurrentConfig};
use crate::kernel::{Access, COMMON, Constant, Dispatch, Kernel, Operand, fold_grid, params};
use crate::{ElementType, Error};

params! {
    struct Params {
        input_size: u32,
        hidden_size: u32,
        state_size: u32,
        num_elements: u32,
        bias_first: u32,
        unit_weights_first: u32,
        weight_hr_first: u32,
        weight_ih_first: u32,
        packed_first: u32,
        has_bias: u32,
    }
}

fn kernel(element: ElementType) -> Kernel {
    Kernel {
        name: "recurrent_pack",
        enables: &[],
        parts: Cow::Owned(vec![
            COMMON,
            element.part(),
            include_str!("../../shaders/recurrent_pack.wgsl"),
        ]),
        params: Params::FIELDS,
        storage: &[
            Access::Read,
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

/// The weights of one direction of one layer, in PyTorch's layout, stored as [`RecurrentConfig::weights`] says.
#[derive(Debug, Clone, Copy)]
pub struct RecurrentWeights<'a> {
    /// `[num_gates * hidden_size, input_size of the layer]`
    pub weight_ih: wgpu::BufferSlice<'a>,
    /// `[num_gates * hidden_size, state_size]`
    pub weight_hh: wgpu::BufferSlice<'a>,
    /// `bias_ih` and `bias_hh`, `[num_gates * hidden_size]` each.
    pub bias: Option<(wgpu::BufferSlice<'a>, wgpu::BufferSlice<'a>)>,
    /// `[3 * hidden_size]`, exactly if the configuration says so: the weights of c in i and f, and of the new c
    /// in o.
    pub peephole: Option<wgpu::BufferSlice<'a>>,
    /// `[proj_size, hidden_size]`, exactly if the configuration says so.
    pub weight_hr: Option<wgpu::BufferSlice<'a>>,
}

/// Where the parts of one direction's packed weights lie, in elements from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    pub bias: u64,
    pub unit_weights: u64,
    pub weight_hr: u64,
    pub weight_ih: u64,
    pub len: u64,
}

/// Parts start at multiples of this many elements, so that each can be bound by itself.
pub(super) const PART: u64 = 64;

impl RecurrentConfig {
    /// Length of the vectors that `layer` reads.
    pub(super) fn layer_input_size(&self, layer: u32) -> u32 {
        if layer == 0 {
            self.input_size
        } else {
            self.direction.count() * self.state_size()
        }
    }

    pub(super) fn packed(&self, layer: u32) -> Packed {
        let hidden = u64::from(self.hidden_size);
        let gate_rows = u64::from(self.cell.num_gates()) * hidden;
        let state = u64::from(self.state_size());
        let bias = (state.next_multiple_of(4) * gate_rows).next_multiple_of(PART);
        let unit_weights = (bias + gate_rows).next_multiple_of(PART);
        let units_len = u64::from(self.num_unit_weights()) * hidden;
        let weight_hr = (unit_weights + units_len).next_multiple_of(PART);
        let projection = match self.proj_size {
            Some(size) => hidden.next_multiple_of(4) * u64::from(size),
            None => 0,
        };
        let weight_ih = (weight_hr + projection).next_multiple_of(PART);
        let input = u64::from(self.layer_input_size(layer));
        let len = (weight_ih + gate_rows * input).next_multiple_of(PART);
        Packed {
            bias,
            unit_weights,
            weight_hr,
            weight_ih,
            len,
        }
    }

    /// Weights of a unit that belong to no product: a GRU's second bias of n, an LSTM's peepholes.
    pub(super) fn num_unit_weights(&self) -> u32 {
        match (self.cell, self.peephole) {
            (_, true) => 3,
            (Cell::Gru, false) => 1,
            _ => 0,
        }
    }

    /// First element of a direction of a layer in the packed weights.
    pub(super) fn packed_start(&self, layer: u32, direction: u32) -> u64 {
        let directions = u64::from(self.direction.count());
        let before: u64 = (0..layer)
            .map(|layer| directions * self.packed(layer).len)
            .sum();
        before + u64::from(direction) * self.packed(layer).len
    }

    /// Bytes of the packed weights.
    pub fn packed_size(&self) -> u64 {
        match self.gradients {
            true => 4 * self.packed_backward_start(self.num_layers, 0),
            false => 4 * self.packed_start(self.num_layers, 0),
        }
    }

    /// The dispatches that pack each direction of each layer, in order; the operands are named as in
    /// [`RecurrentWeights`].
    pub fn pack_dispatches(&self) -> Vec<Dispatch> {
        let directions = self.direction.count();
        (0..self.num_layers * directions)
            .flat_map(|i| self.pack_one(i / directions, i % directions, true))
            .collect()
    }

    /// Those of one direction of a layer.
    fn pack_one(&self, layer: u32, direction: u32, has_bias: bool) -> Vec<Dispatch> {
        let mut dispatches = vec![self.pack_dispatch(layer, direction, has_bias)];
        if self.gradients {
            dispatches.push(self.pack_backward_dispatch(layer, direction, has_bias));
        }
        dispatches
    }

    fn pack_dispatch(&self, layer: u32, direction: u32, has_bias: bool) -> Dispatch {
        let packed = self.packed(layer);
        let start = self.packed_start(layer, direction);
        let gate_rows = u64::from(self.cell.num_gates() * self.hidden_size);
        let input_size = self.layer_input_size(layer);
        let (operand, packed_first) = Operand::elements("packed", start..start + packed.len);
        let params = Params {
            input_size,
            hidden_size: self.hidden_size,
            state_size: self.state_size(),
            num_elements: packed.len as u32,
            bias_first: packed.bias as u32,
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
                optional("bias_ih", has_bias, gate_rows),
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

impl Recurrent {
    /// Bytes that [`pack_weights`](Self::pack_weights) writes.
    pub fn packed_size(&self) -> u64 {
        self.config.packed_size()
    }

    /// Records the repacking of all weights into `packed`: once, before the first call that uses them.
    ///
    /// `weights` holds `num_layers * num_directions` entries, at index `layer * num_directions + direction`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of entries, [`Error::Operand`] for peepholes or a projection that
    /// the configuration does not want, or that are missing; those of [`Context::bind`](crate::Context::bind).
    pub fn pack_weights(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        weights: &[RecurrentWeights<'_>],
        packed: wgpu::BufferSlice<'_>,
    ) -> Result<(), Error> {
        let directions = self.config.direction.count();
        let expected = self.config.num_layers * directions;
        if weights.len() != expected as usize {
            let expected = format!("num_layers * num_directions = {expected}");
            return Err(Error::shape("number of weights", weights.len(), expected));
        }
        for (i, weights) in (0..).zip(weights) {
            let mut slices = vec![
                ("weight_ih", weights.weight_ih),
                ("weight_hh", weights.weight_hh),
                ("packed", packed),
            ];
            if let Some((bias_ih, bias_hh)) = weights.bias {
                slices.extend([("bias_ih", bias_ih), ("bias_hh", bias_hh)]);
            }
            let (has_peephole, has_projection) =
                (self.config.peephole, self.config.proj_size.is_some());
            wanted("peephole", has_peephole, weights.peephole.is_some())?;
            wanted("weight_hr", has_projection, weights.weight_hr.is_some())?;
            slices.extend(weights.peephole.map(|peephole| ("peephole", peephole)));
            slices.extend(weights.weight_hr.map(|weight_hr| ("weight_hr", weight_hr)));
            let has_bias = weights.bias.is_some();
            let dispatches = self
                .config
                .pack_one(i / directions, i % directions, has_bias);
            self.context.bind_own(&dispatches, &slices)?.record(pass);
        }
        Ok(())
    }
}

/// Whether a tensor is given exactly if the configuration has it.
pub(super) fn wanted(name: &'static str, wanted: bool, given: bool) -> Result<(), Error> {
    let problem = match (wanted, given) {
        (true, false) => "is needed and missing",
        (false, true) => "the configuration has none",
        _ => return Ok(()),
    };
    Err(Error::Operand { name, problem })
}
