//! RNN, LSTM and GRU with PyTorch's names and layouts.

mod cases;
mod check;
mod options;
mod read;

use gatefold::reference::compare::Difference;
use gatefold::{
    Capabilities, Cell, Given, Gpu, Plan, Recurrent as Operation, RecurrentBuffers,
    RecurrentConfig, RecurrentShape, RecurrentWeights, Variant,
};
use serde_json::{Value, json};

use super::launch::Output;
use super::random::Random;
use super::{Launch, Problem};
use crate::error::Result;
use crate::tensors::{Data, Tensor, Tensors, floats, integers};

pub use cases::{cases, showcase};
pub use options::{BenchOptions, Kind, RunOptions, grid};
pub use read::from_tensors;

#[derive(Debug, Clone)]
struct Recurrent {
    config: RecurrentConfig,
    shape: RecurrentShape,
    bias: bool,
    h_0: bool,
    c_0: bool,
    /// Of random inputs, and whether there are any.
    lengths: Option<Vec<u32>>,
    batch_first: bool,
}

impl Recurrent {
    fn new(config: RecurrentConfig, seq_len: u32, batch: u32) -> Self {
        Self {
            config,
            shape: RecurrentShape { seq_len, batch },
            bias: true,
            h_0: false,
            c_0: false,
            lengths: None,
            batch_first: false,
        }
    }

    fn is_lstm(&self) -> bool {
        self.config.cell == Cell::Lstm
    }

    fn forced(&self, variant: Option<Variant>) -> RecurrentConfig {
        RecurrentConfig {
            variant: variant.or(self.config.variant),
            ..self.config
        }
    }

    fn given(&self) -> Given {
        Given {
            h_0: self.h_0,
            c_0: self.c_0,
            lengths: self.lengths.is_some(),
            h_n: true,
            c_n: self.is_lstm(),
        }
    }

    fn directions(&self) -> usize {
        self.config.direction.count() as usize
    }

    /// `[seq_len, batch, width]`
    fn sequence(&self, width: usize) -> [usize; 3] {
        [
            self.shape.seq_len as usize,
            self.shape.batch as usize,
            width,
        ]
    }

    fn output_shape(&self) -> [usize; 3] {
        self.sequence(self.directions() * self.config.hidden_size as usize)
    }

    fn state_shape(&self) -> [usize; 3] {
        [
            self.config.num_layers as usize * self.directions(),
            self.shape.batch as usize,
            self.config.hidden_size as usize,
        ]
    }

    /// Name and shape of every parameter, by layer and direction.
    fn parameters(&self) -> Vec<Vec<(String, Vec<usize>)>> {
        let hidden = self.config.hidden_size as usize;
        let rows = self.config.cell.num_gates() as usize * hidden;
        let mut parameters = Vec::new();
        for layer in 0..self.config.num_layers {
            let width = match layer {
                0 => self.config.input_size as usize,
                _ => self.directions() * hidden,
            };
            for direction in 0..self.directions() {
                let mut own = vec![
                    (parameter("weight_ih", layer, direction), vec![rows, width]),
                    (parameter("weight_hh", layer, direction), vec![rows, hidden]),
                ];
                if self.bias {
                    own.push((parameter("bias_ih", layer, direction), vec![rows]));
                    own.push((parameter("bias_hh", layer, direction), vec![rows]));
                }
                parameters.push(own);
            }
        }
        parameters
    }

    /// `[seq_len, batch, input_size]`, whatever the axes of the file.
    fn input(&self, inputs: &Tensors) -> Result<Vec<f32>> {
        let values = floats(inputs, "input")?;
        if !self.batch_first {
            return Ok(values.to_vec());
        }
        let [seq_len, batch, width] = self.sequence(self.config.input_size as usize);
        let swapped = Tensor::f32(&[batch, seq_len, width], values.to_vec()).swap_axes();
        match swapped.data {
            Data::F32(values) => Ok(values),
            _ => Ok(Vec::new()),
        }
    }

    fn lengths(&self, inputs: &Tensors) -> Result<Option<Vec<u32>>> {
        if self.lengths.is_none() {
            return Ok(None);
        }
        let lengths = integers(inputs, "lengths")?.iter();
        // within 0..=seq_len: checked where they came from
        Ok(Some(lengths.map(|&length| length as u32).collect()))
    }

    /// The weights on the device, packed.
    fn pack(&self, gpu: &Gpu, op: &Operation, inputs: &Tensors) -> Result<gatefold::wgpu::Buffer> {
        let mut buffers = Vec::new();
        for own in self.parameters() {
            let upload = |(name, _): &(String, _)| Ok(gpu.upload(name, floats(inputs, name)?)?);
            let own: Result<Vec<_>> = own.iter().map(upload).collect();
            buffers.push(own?);
        }
        let weights: Vec<_> = buffers
            .iter()
            .map(|own| RecurrentWeights {
                weight_ih: own[0].slice(..),
                weight_hh: own[1].slice(..),
                bias: self.bias.then(|| (own[2].slice(..), own[3].slice(..))),
            })
            .collect();
        let packed = gpu.zeros("packed weights", op.packed_size())?;
        gpu.run(|pass| op.pack_weights(pass, &weights, packed.slice(..)))?;
        Ok(packed)
    }
}

/// PyTorch's name, for instance `weight_ih_l0_reverse`.
fn parameter(stem: &str, layer: u32, direction: usize) -> String {
    let suffix = if direction == 1 { "_reverse" } else { "" };
    format!("{stem}_l{layer}{suffix}")
}

impl Problem for Recurrent {
    fn op(&self) -> &'static str {
        match self.config.cell {
            Cell::RnnTanh | Cell::RnnRelu => "rnn",
            Cell::Lstm => "lstm",
            Cell::Gru => "gru",
        }
    }

    fn shape(&self) -> Vec<(&'static str, Value)> {
        let config = &self.config;
        vec![
            ("batch", json!(self.shape.batch)),
            ("seq_len", json!(self.shape.seq_len)),
            ("input_size", json!(config.input_size)),
            ("hidden_size", json!(config.hidden_size)),
            ("layers", json!(config.num_layers)),
            ("bidirectional", json!(self.directions() == 2)),
        ]
    }

    fn options(&self) -> Vec<String> {
        let tier = self
            .config
            .tier
            .map(|tier| format!("--tier={}", tier.name()));
        let clip = self.config.clip.map(|clip| format!("--clip={clip}"));
        let relu = self.config.cell == Cell::RnnRelu;
        let flags = [
            (self.batch_first, "--batch-first"),
            (relu, "--nonlinearity=relu"),
        ];
        let flags = flags.iter().filter(|(given, _)| *given);
        let flags = flags.map(|(_, flag)| (*flag).to_owned());
        tier.into_iter().chain(clip).chain(flags).collect()
    }

    fn steps(&self) -> Option<u64> {
        Some(self.shape.seq_len.into())
    }

    fn variant_name(&self, plan: &Plan) -> String {
        // the description begins with the tier
        let tier = plan.describe.split(',').next().unwrap_or_default();
        format!("{tier} {}", plan.variant)
    }

    fn variants(&self, capabilities: &Capabilities) -> Vec<Variant> {
        let mut tiers = self.config.tiers(capabilities, self.shape.batch);
        if self
            .config
            .tier
            .is_some_and(|tier| !tiers.any(|other| other == tier))
        {
            return Vec::new();
        }
        self.config.variants(capabilities).collect()
    }

    fn plan(
        &self,
        capabilities: &Capabilities,
        variant: Option<Variant>,
    ) -> Result<Plan, gatefold::Error> {
        self.forced(variant)
            .plan(capabilities, self.shape, self.given())
    }

    fn random(&self, seed: u64) -> Tensors {
        let mut random = Random::new(seed);
        // gates neither all open nor all shut, and asymmetric, so that swapped ones show
        let scale = 1.5 / (self.config.hidden_size as f32).sqrt();
        let mut tensors = Tensors::new();
        let mut add = |name: String, shape: &[usize], deviation| {
            let values = random.normals(shape.iter().product(), 0.0, deviation);
            tensors.insert(name, Tensor::f32(shape, values));
        };
        let [seq_len, batch, width] = self.sequence(self.config.input_size as usize);
        let input = if self.batch_first {
            [batch, seq_len, width]
        } else {
            [seq_len, batch, width]
        };
        add("input".into(), &input, 1.0);
        for (name, shape) in self.parameters().into_iter().flatten() {
            let deviation = if shape.len() == 1 { 0.5 } else { scale };
            add(name, &shape, deviation);
        }
        if self.h_0 {
            add("h_0".into(), &self.state_shape(), 0.5);
        }
        if self.c_0 {
            add("c_0".into(), &self.state_shape(), 1.0);
        }
        if let Some(lengths) = &self.lengths {
            let lengths = Tensor {
                shape: vec![lengths.len()],
                data: Data::I64(lengths.iter().map(|&length| length.into()).collect()),
            };
            tensors.insert("lengths".into(), lengths);
        }
        tensors
    }

    fn launch(&self, gpu: &Gpu, variant: Option<Variant>, inputs: &Tensors) -> Result<Launch> {
        let config = self.forced(variant);
        let plan = config.plan(gpu.context().capabilities(), self.shape, self.given())?;
        let op = Operation::new(gpu.context(), config)?;
        let packed = self.pack(gpu, &op, inputs)?;
        let input = gpu.upload("input", &self.input(inputs)?)?;
        let state = |given: bool, name| -> Result<_> {
            let upload = || Ok(gpu.upload(name, floats(inputs, name)?)?);
            given.then(upload).transpose()
        };
        let (h_0, c_0) = (state(self.h_0, "h_0")?, state(self.c_0, "c_0")?);
        let lengths = match self.lengths(inputs)? {
            Some(lengths) => Some(gpu.upload("lengths", &lengths)?),
            None => None,
        };
        let scratch = gpu.zeros("scratch", plan.scratch_size)?;
        let output = Output::new(gpu, "output", &self.output_shape())?.swapped(self.batch_first);
        let h_n = Output::new(gpu, "h_n", &self.state_shape())?;
        let c_n = match self.is_lstm() {
            true => Some(Output::new(gpu, "c_n", &self.state_shape())?),
            false => None,
        };
        let needed = RecurrentBuffers::new(
            input.slice(..),
            packed.slice(..),
            output.slice(),
            scratch.slice(..),
        );
        let buffers = RecurrentBuffers {
            h_0: h_0.as_ref().map(|buffer| buffer.slice(..)),
            c_0: c_0.as_ref().map(|buffer| buffer.slice(..)),
            lengths: lengths.as_ref().map(|buffer| buffer.slice(..)),
            h_n: Some(h_n.slice()),
            c_n: c_n.as_ref().map(Output::slice),
            ..needed
        };
        let bound = op.bind(self.shape, buffers)?;
        let outputs = [output, h_n].into_iter().chain(c_n).collect();
        Ok(Launch::new(plan, bound, outputs))
    }

    fn truth(&self, inputs: &Tensors) -> Result<Tensors> {
        check::truth(self, inputs)
    }

    fn check(&self, inputs: &Tensors, got: &Tensors) -> Result<Result<f64, Box<Difference>>> {
        check::check(self, inputs, got)
    }
}
