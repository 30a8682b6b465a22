//! An operation with its tensors on a device.

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
    /// Makes what is handed out of what the device has written.
    finish: Option<Finish>,
}

type Finish = Box<dyn Fn(Tensors) -> Result<Tensors>>;

/// An output full of NaN, so that what a kernel leaves out shows.
pub struct Output {
    name: String,
    shape: Vec<usize>,
    /// The axes in which it is handed out.
    order: Option<&'static [usize]>,
    buffer: wgpu::Buffer,
}

impl Output {
    pub fn new(gpu: &Gpu, name: impl Into<String>, shape: &[usize]) -> Result<Self> {
        let name = name.into();
        let len: usize = shape.iter().product();
        let buffer = gpu.zeros(&name, 4 * (len + CANARIES) as u64)?;
        let output = Self {
            name,
            shape: shape.to_vec(),
            order: None,
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

    pub fn name(&self) -> &'static str {
        self.name
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

impl Launch {
    pub fn new(plan: Plan, bounds: Vec<Bound>, outputs: Vec<Output>) -> Self {
        Self {
            plan,
            bounds,
            outputs,
            finish: None,
        }
    }

    /// This, with `finish` between the device's outputs and those that [`run`](Self::run) returns.
    pub fn finished_by(self, finish: impl Fn(Tensors) -> Result<Tensors> + 'static) -> Self {
        Self {
            finish: Some(Box::new(finish)),
            ..self
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
        let tensors = self
            .outputs
            .iter()
            .map(|output| Ok((output.name.clone(), output.read(gpu)?)))
            .collect::<Result<_>>()?;
        match &self.finish {
            Some(finish) => finish(tensors),
            None => Ok(tensors),
        }
    }
}
