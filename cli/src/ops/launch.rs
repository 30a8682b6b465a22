//! An operation with its tensors on a device.

use std::ops::Range;

use gatefold::{Bound, Gpu, Plan, wgpu};

use crate::error::{Error, Result};
use crate::tensors::{Tensor, Tensors};

/// Words behind every output, inside the slice that is bound, which no kernel may touch.
const CANARIES: usize = 64;
const CANARY: u32 = 0x7fc0_ca9a;

/// Bound and ready to be recorded.
pub struct Launch {
    pub plan: Plan,
    /// One after the other: a forward pass, then perhaps a backward one.
    bounds: Vec<Bound>,
    outputs: Vec<Output>,
}

/// An output full of NaN, so that what a kernel leaves out shows.
pub struct Output {
    name: String,
    shape: Vec<usize>,
    /// The axes in which it is handed out.
    order: Option<&'static [usize]>,
    /// What it is handed out as, if it is several tensors.
    parts: Option<Vec<Part>>,
    buffer: wgpu::Buffer,
}

/// A tensor that is a range of an output's elements.
pub struct Part {
    pub name: String,
    pub shape: Vec<usize>,
    pub elements: Range<usize>,
}

impl Output {
    pub fn new(gpu: &Gpu, name: impl Into<String>, shape: &[usize]) -> Result<Self> {
        let (name, len): (String, usize) = (name.into(), shape.iter().product());
        let buffer = gpu.zeros(&name, 4 * (len + CANARIES) as u64)?;
        let output = Self {
            name,
            shape: shape.to_vec(),
            order: None,
            parts: None,
            buffer,
        };
        output.poison(gpu);
        Ok(output)
    }

    /// As [`new`](Self::new), but handed out with its axes in another order.
    pub fn permuted(
        gpu: &Gpu,
        name: impl Into<String>,
        shape: &[usize],
        order: &'static [usize],
    ) -> Result<Self> {
        Ok(Self {
            order: Some(order),
            ..Self::new(gpu, name, shape)?
        })
    }

    /// `len` elements that hold several tensors.
    pub fn joined(gpu: &Gpu, name: &str, len: usize, parts: Vec<Part>) -> Result<Self> {
        Ok(Self {
            parts: Some(parts),
            ..Self::new(gpu, name, &[len])?
        })
    }

    pub fn slice(&self) -> wgpu::BufferSlice<'_> {
        self.buffer.slice(..)
    }

    pub fn poison(&self, gpu: &Gpu) {
        let mut words = vec![f32::NAN.to_bits(); self.shape.iter().product()];
        words.resize(words.len() + CANARIES, CANARY);
        gpu.queue()
            .write_buffer(&self.buffer, 0, bytemuck::cast_slice(&words));
    }

    pub fn read(&self, gpu: &Gpu) -> Result<Tensor> {
        let words: Vec<u32> = gpu.download(&self.buffer)?;
        let (values, canaries) = words.split_at(self.shape.iter().product());
        if canaries.iter().any(|&word| word != CANARY) {
            let name = &self.name;
            return Err(Error::failed(format_args!(
                "{name}: a kernel wrote behind it"
            )));
        }
        let values = values.iter().map(|&word| f32::from_bits(word)).collect();
        let tensor = Tensor::f32(&self.shape, values);
        Ok(match self.order {
            Some(order) => tensor.permuted(order),
            None => tensor,
        })
    }
}

impl Output {
    /// The tensors that it is handed out as.
    fn tensors(&self, gpu: &Gpu) -> Result<Vec<(String, Tensor)>> {
        let whole = self.read(gpu)?;
        let Some(parts) = &self.parts else {
            return Ok(vec![(self.name.clone(), whole)]);
        };
        let values = whole.into_f32();
        let tensor = |part: &Part| {
            let values = values[part.elements.clone()].to_vec();
            (part.name.clone(), Tensor::f32(&part.shape, values))
        };
        Ok(parts.iter().map(tensor).collect())
    }
}

impl Launch {
    pub fn new(plan: Plan, bounds: Vec<Bound>, outputs: Vec<Output>) -> Self {
        Self {
            plan,
            bounds,
            outputs,
        }
    }

    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.bounds.iter().for_each(|bound| bound.record(pass));
    }

    pub fn num_dispatches(&self) -> u32 {
        self.bounds.iter().map(Bound::num_dispatches).sum()
    }

    /// Runs once and reads the outputs.
    pub fn run(&self, gpu: &Gpu) -> Result<Tensors> {
        for output in &self.outputs {
            output.poison(gpu);
        }
        gpu.run(|pass| {
            self.record(pass);
            Ok(())
        })?;
        let mut tensors = Tensors::new();
        for output in &self.outputs {
            tensors.extend(output.tensors(gpu)?);
        }
        Ok(tensors)
    }
}
