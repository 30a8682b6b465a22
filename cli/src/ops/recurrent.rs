//! RNN, LSTM and GRU over whole sequences, as far as the library has them.

pub mod call;
mod cases;
mod check;
mod gradients;
mod grid;
mod keras;
mod onnx;
mod options;
mod pytorch;

use gatefold::reference::compare::Difference;
use gatefold::reference::recurrent as reference;
use gatefold::{
    Capabilities, Cell, ElementType, Given, Gpu, Plan, Recurrent as Operation,
    RecurrentBackwardBuffers, RecurrentBackwardGiven, RecurrentBuffers, RecurrentConfig,
    RecurrentGradients, RecurrentShape, RecurrentWeights, Tier, Variant, wgpu,
};
use serde_json::{Value, json};

use super::launch::Output;
use super::{Launch, Problem};
use crate::args::RunCommon;
use crate::error::Result;
use crate::tensors::{Tensor, Tensors, floats, get};
use call::Call;
use options::Format;

pub use cases::cases;
pub use grid::{grid, showcase};
pub use options::{BenchOptions, RunOptions};

/// The operation on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Rnn,
    Lstm,
    Gru,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::Rnn => "rnn",
            Self::Lstm => "lstm",
            Self::Gru => "gru",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Recurrent {
    op: Op,
    config: RecurrentConfig,
    shape: RecurrentShape,
    given: Given,
    /// Whether the backward pass is wanted, and which gradients arrive: of output, h_n, c_n.
    grad: bool,
    arriving: [bool; 3],
    bias: bool,
    format: Format,
    batch_first: bool,
}

/// An output, with its time first, and the order of the axes in which it is handed out.
struct Wanted {
    name: String,
    shape: Vec<usize>,
    order: &'static [usize],
}

impl Wanted {
    const AXES: [usize; 4] = [0, 1, 2, 3];

    /// Handed out as it is.
    fn plain(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            order: &Self::AXES[..shape.len()],
        }
    }

    /// The shape in which it is handed out.
    fn handed_shape(&self) -> Vec<usize> {
        self.order.iter().map(|&axis| self.shape[axis]).collect()
    }

    /// As the device has it if that is how it is handed out.
    fn in_place(&self) -> Self {
        Self::plain(self.name.clone(), &self.handed_shape())
    }

    /// What is handed out, with its time first again.
    fn undone(&self, handed: &Tensor) -> Tensor {
        let mut back = vec![0; self.order.len()];
        for (i, &axis) in self.order.iter().enumerate() {
            back[axis] = i;
        }
        handed.permuted(&back)
    }
}

/// The problem that the flags and tensors of `run` pose.
pub fn from_tensors(
    op: Op,
    common: &RunCommon,
    options: &RunOptions,
    tensors: &Tensors,
) -> Result<Box<dyn Problem>> {
    let mut problem = match options.format {
        Format::Pytorch => pytorch::problem(op, common, options, tensors)?,
        Format::Onnx => onnx::problem(op, common, options, tensors)?,
        Format::Keras => keras::problem(op, common, options, tensors)?,
    };
    // as the file has them
    let input = match options.format {
        Format::Onnx => "X",
        _ => "input",
    };
    problem.config.element = get(tensors, input)?.element;
    problem.config.weights = weights_element(tensors, input);
    // in place, where the tensors can be bound as a whole
    problem.config.batch_first = problem.batch_first;
    if problem.plan(&Capabilities::floor(), None).is_err() {
        problem.config.batch_first = false;
    }
    problem.possible()?;
    Ok(Box::new(problem))
}

/// How the weights are stored if that is the same for all of them, else f32, which holds them all.
fn weights_element(tensors: &Tensors, input: &str) -> ElementType {
    let others = [
        "lengths",
        "sequence_lens",
        "h_0",
        "c_0",
        "initial_h",
        "initial_c",
    ];
    let mut elements = tensors
        .iter()
        .filter(|(name, _)| *name != input && !others.contains(&name.as_str()))
        .filter(|(name, _)| !name.starts_with("grad_"))
        .map(|(_, tensor)| tensor.element);
    let first = elements.next().unwrap_or_default();
    match elements.all(|element| element == first) {
        true => first,
        false => ElementType::F32,
    }
}

impl Recurrent {
    fn forced(&self, variant: Option<Variant>) -> RecurrentConfig {
        RecurrentConfig {
            variant,
            ..self.config
        }
    }

    /// A shape that no device can run is a mistake of the user's: known before a device is opened.
    fn possible(&self) -> Result<()> {
        match self.plan(&Capabilities::floor(), None) {
            Err(error @ gatefold::Error::Shape { .. }) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn backward_given(&self) -> RecurrentBackwardGiven {
        let [grad_output, grad_h_n, grad_c_n] = self.arriving;
        RecurrentBackwardGiven {
            lengths: self.given.lengths,
            grad_output,
            grad_h_n,
            grad_c_n,
            grad_input: true,
            grad_h_0: self.given.h_0,
            grad_c_0: self.given.c_0,
            parameters: true,
            bias: self.bias,
            grad_norms: true,
        }
    }

    fn has_cell_state(&self) -> bool {
        self.config.cell.has_cell_state()
    }

    fn reference(&self) -> reference::Problem {
        let (shape, config) = (&self.shape, &self.config);
        reference::Problem {
            cell: config.cell,
            input_size: config.input_size as usize,
            hidden_size: config.hidden_size as usize,
            proj_size: config.proj_size.map(|size| size as usize),
            num_layers: config.num_layers as usize,
            direction: config.direction,
            dropout: config.dropout,
            seed: shape.seed,
            activations: config.activations,
            clip: config.clip,
            truncate: config.truncate.map(|steps| steps as usize),
            seq_len: shape.seq_len as usize,
            batch: shape.batch as usize,
        }
    }

    fn call(&self, inputs: &Tensors) -> Result<Call> {
        match self.format {
            Format::Pytorch => pytorch::call(self, inputs),
            Format::Onnx => onnx::call(self, inputs),
            Format::Keras => keras::call(self, inputs),
        }
    }

    /// A tensor as the device reads it: as it is given, under one of these names, or with its time first.
    fn placed<'a>(
        &self,
        inputs: &'a Tensors,
        names: &[&str],
        time_first: Option<&'a [f32]>,
    ) -> Option<&'a [f32]> {
        match self.config.batch_first {
            true => names.iter().find_map(|name| floats(inputs, name).ok()),
            false => time_first,
        }
    }

    /// Buffers for what is wanted, of which the first has a time, and a batch that may be in front of it.
    fn outputs(&self, gpu: &Gpu, mut wanted: Vec<Wanted>) -> Result<Vec<Output>> {
        if self.config.batch_first {
            wanted[0] = wanted[0].in_place();
        }
        wanted
            .into_iter()
            .map(|wanted| Output::permuted(gpu, wanted.name, &wanted.shape, wanted.order))
            .collect()
    }

    /// `output`, `h_n` and, of an LSTM, `c_n`, under the format's names.
    fn forward_outputs(&self) -> Vec<Wanted> {
        let p = self.reference();
        let directions = p.direction.count() as usize;
        let states = |width| vec![p.num_layers * directions, p.batch, width];
        let joined = vec![p.seq_len, p.batch, directions * p.state_size()];
        let apart = vec![p.seq_len, p.batch, directions, p.state_size()];
        let (names, output, order): (_, _, &[usize]) = match (self.format, self.batch_first) {
            (Format::Onnx, false) => (["Y", "Y_h", "Y_c"], apart, &[0, 2, 1, 3]),
            (Format::Onnx, true) => (["Y", "Y_h", "Y_c"], apart, &[1, 0, 2, 3]),
            (_, false) => (["output", "h_n", "c_n"], joined, &[0, 1, 2]),
            (_, true) => (["output", "h_n", "c_n"], joined, &[1, 0, 2]),
        };
        let state_order: &[usize] = match (self.format, self.batch_first) {
            (Format::Onnx, true) => &[1, 0, 2],
            _ => &[0, 1, 2],
        };
        let wanted = |name: &str, shape: &[usize], order| Wanted {
            order,
            ..Wanted::plain(name, shape)
        };
        let [output_name, h_n, c_n] = names;
        let mut all = vec![
            wanted(output_name, &output, order),
            wanted(h_n, &states(p.state_size()), state_order),
        ];
        if self.has_cell_state() {
            all.push(wanted(c_n, &states(p.hidden_size), state_order));
        }
        all
    }
}

impl Problem for Recurrent {
    fn op(&self) -> &'static str {
        self.op.name()
    }

    fn shape(&self) -> Vec<(&'static str, Value)> {
        let (shape, config) = (&self.shape, &self.config);
        let directions = config.direction.count();
        let nonlinearity = match config.cell {
            Cell::RnnTanh => json!("tanh"),
            Cell::RnnRelu => json!("relu"),
            _ => Value::Null,
        };
        vec![
            ("batch", json!(shape.batch)),
            ("seq_len", json!(shape.seq_len)),
            ("input_size", json!(config.input_size)),
            ("hidden_size", json!(config.hidden_size)),
            ("proj_size", json!(config.proj_size)),
            ("layers", json!(config.num_layers)),
            ("bidirectional", json!(directions == 2)),
            ("nonlinearity", nonlinearity),
        ]
    }

    fn dtype(&self) -> ElementType {
        self.config.element
    }

    fn options(&self) -> Vec<String> {
        let config = &self.config;
        let relu = (config.cell == Cell::RnnRelu).then(|| "--nonlinearity=relu".to_owned());
        let coupled = (config.cell == Cell::LstmCoupled).then(|| "--input-forget".to_owned());
        let before = config.cell == Cell::GruResetBefore;
        let before = before.then(|| "--linear-before-reset=0".to_owned());
        let batch_first = self.batch_first.then(|| "--batch-first".to_owned());
        let clip = config.clip.map(|clip| format!("--clip={clip}"));
        let tier = config.tier.map(|tier| format!("--tier={}", tier.name()));
        let dropout = config.dropout;
        let dropout =
            (dropout > 0.0).then(|| format!("--dropout={dropout} --seed={}", self.shape.seed));
        let grad = self.grad.then(|| "--grad".to_owned());
        let every = config
            .checkpoint_every
            .map(|every| format!("--checkpoint-every={every}"));
        let all = [
            relu,
            coupled,
            before,
            batch_first,
            dropout,
            clip,
            tier,
            grad,
            every,
        ];
        all.into_iter().flatten().collect()
    }

    fn steps(&self) -> Option<u64> {
        Some(self.shape.seq_len.into())
    }

    fn tier(&self, plan: &Plan) -> Option<&'static str> {
        let kernels = plan.dispatches.iter().map(|dispatch| &dispatch.kernel);
        let tier = |name| match name {
            "recurrent_stepped" => Some(Tier::Stepped),
            "recurrent_resident" => Some(Tier::Resident),
            "recurrent_persistent" => Some(Tier::Persistent),
            _ => None,
        };
        kernels
            .filter_map(|kernel| tier(kernel.name))
            .map(Tier::name)
            .next()
    }

    fn variants(&self, capabilities: &Capabilities) -> Vec<Variant> {
        let mut tiers = self.config.tiers(capabilities, self.shape.batch);
        match self.config.tier {
            // right on every device, only not fast
            Some(Tier::Persistent) => self.config.variants(capabilities).collect(),
            Some(forced) if !tiers.any(|tier| tier == forced) => Vec::new(),
            _ => self.config.variants(capabilities).collect(),
        }
    }

    fn plan(
        &self,
        capabilities: &Capabilities,
        variant: Option<Variant>,
    ) -> Result<Plan, gatefold::Error> {
        let config = self.forced(variant);
        let forward = config.plan(capabilities, self.shape, self.given)?;
        if !self.grad {
            return Ok(forward);
        }
        let backward = config.plan_backward(capabilities, self.shape, self.backward_given())?;
        Ok(forward.then(backward))
    }

    fn random(&self, seed: u64) -> Tensors {
        grid::random(self, seed)
    }

    fn launch(&self, gpu: &Gpu, variant: Option<Variant>, inputs: &Tensors) -> Result<Launch> {
        let plan = self.plan(gpu.context().capabilities(), variant)?;
        let op = Operation::new(gpu.context(), self.forced(variant))?;
        let call = self.call(inputs)?;
        let packed = pack(gpu, &op, &call)?;
        let input = self.placed(inputs, &["input", "X"], Some(&call.input));
        let input = self.config.element.words(input.unwrap_or_default());
        let input = gpu.upload("input", &input)?;
        let h_0 = upload(gpu, "h_0", call.h_0.as_deref())?;
        let c_0 = upload(gpu, "c_0", call.c_0.as_deref())?;
        let lengths = upload(gpu, "lengths", call.lengths.as_deref())?;
        let poisoned = |name: &str, size: u64| {
            // empty buffers cannot be bound
            let poison = vec![f32::NAN; (size as usize / 4).max(1)];
            gpu.upload(name, &poison)
        };
        let scratch = poisoned("scratch", plan.scratch_size)?;
        let reserve = match self.grad {
            true => Some(poisoned("reserve", op.reserve_size(self.shape)?)?),
            false => None,
        };
        let mut outputs = self.outputs(gpu, self.forward_outputs())?;
        let buffers = RecurrentBuffers {
            h_0: h_0.as_ref().map(|buffer| buffer.slice(..)),
            c_0: c_0.as_ref().map(|buffer| buffer.slice(..)),
            lengths: lengths.as_ref().map(|buffer| buffer.slice(..)),
            h_n: Some(outputs[1].slice()),
            c_n: outputs.get(2).map(Output::slice),
            reserve: reserve.as_ref().map(|buffer| buffer.slice(..)),
            ..RecurrentBuffers::new(
                input.slice(..),
                packed.slice(..),
                outputs[0].slice(),
                scratch.slice(..),
            )
        };
        let mut bounds = vec![op.bind(self.shape, buffers)?];
        let Some(reserve) = reserve else {
            return Ok(Launch::new(plan, bounds, outputs));
        };
        let gradients = self.outputs(gpu, gradients::wanted(self))?;
        let [grad_output, grad_h_n, grad_c_n] = call.upstream.each_ref().map(Option::as_deref);
        let names = gradients::arriving_names(self.format)[0];
        let arriving = [
            upload(gpu, "grad_output", self.placed(inputs, names, grad_output))?,
            upload(gpu, "grad_h_n", grad_h_n)?,
            upload(gpu, "grad_c_n", grad_c_n)?,
        ];
        let [grad_output, grad_h_n, grad_c_n] = arriving.each_ref().map(Option::as_ref);
        let mut slices = gradients.iter().map(Output::slice);
        let mut next = |wanted: bool| wanted.then(|| slices.next()).flatten();
        let grad_input = next(true);
        let (grad_h_0, grad_c_0) = (next(self.given.h_0), next(self.given.c_0));
        let grad_norms = next(true);
        let mut grad_weights = Vec::new();
        while let (Some(weight_ih), Some(weight_hh)) = (next(true), next(true)) {
            grad_weights.push(RecurrentGradients {
                weight_ih,
                weight_hh,
                bias: next(self.bias).zip(next(self.bias)),
                peephole: next(self.config.peephole),
                weight_hr: next(self.config.proj_size.is_some()),
            });
        }
        let buffers = RecurrentBackwardBuffers {
            lengths: lengths.as_ref().map(|buffer| buffer.slice(..)),
            grad_output: grad_output.map(|buffer| buffer.slice(..)),
            grad_h_n: grad_h_n.map(|buffer| buffer.slice(..)),
            grad_c_n: grad_c_n.map(|buffer| buffer.slice(..)),
            grad_input,
            grad_h_0,
            grad_c_0,
            grad_weights: &grad_weights,
            grad_norms,
            ..RecurrentBackwardBuffers::new(
                input.slice(..),
                packed.slice(..),
                reserve.slice(..),
                scratch.slice(..),
            )
        };
        bounds.push(op.bind_backward(self.shape, buffers)?);
        drop(grad_weights);
        outputs.extend(gradients);
        let problem = *self;
        let finish = move |tensors| gradients::of_format(&problem, tensors);
        Ok(Launch::new(plan, bounds, outputs).finished_by(finish))
    }

    fn truth(&self, inputs: &Tensors) -> Result<Tensors> {
        let call = self.call(inputs)?;
        let truth = call.reference::<f64>(&self.reference());
        let values = [truth.output, truth.h_n, truth.c_n];
        let tensors = self.forward_outputs().into_iter().zip(values);
        let mut tensors: Tensors = tensors
            .map(|(wanted, values)| {
                let tensor = Tensor::f64(&wanted.shape, values).permuted(wanted.order);
                (wanted.name, tensor)
            })
            .collect();
        if !self.grad {
            return Ok(tensors);
        }
        let [gradients, _] = call.gradients::<f64>(&self.reference());
        let values = gradients::flat(self, gradients);
        for (wanted, values) in gradients::wanted(self).into_iter().zip(values) {
            let tensor = Tensor::f64(&wanted.shape, values).permuted(wanted.order);
            tensors.insert(wanted.name, tensor);
        }
        gradients::of_format(self, tensors)
    }

    fn check(
        &self,
        _: Variant,
        inputs: &Tensors,
        got: &Tensors,
    ) -> Result<Result<f64, Box<Difference>>> {
        check::check(self, inputs, got)
    }
}

fn upload<T: bytemuck::Pod>(
    gpu: &Gpu,
    name: &str,
    values: Option<&[T]>,
) -> Result<Option<wgpu::Buffer>> {
    Ok(values.map(|values| gpu.upload(name, values)).transpose()?)
}

/// The weights on the device, in the kernels' layout.
fn pack(gpu: &Gpu, op: &Operation, call: &Call) -> Result<wgpu::Buffer> {
    let mut buffers = Vec::new();
    for weights in &call.weights {
        let element = op.config().weights;
        let upload = |values: &[f32]| gpu.upload("weights", &element.words(values));
        buffers.push([
            upload(&weights.weight_ih)?,
            upload(&weights.weight_hh)?,
            upload(&weights.bias_ih)?,
            upload(&weights.bias_hh)?,
            upload(&weights.peephole)?,
            upload(&weights.weight_hr)?,
        ]);
    }
    let mut given = Vec::new();
    for (buffers, weights) in buffers.iter().zip(&call.weights) {
        let [weight_ih, weight_hh, bias_ih, bias_hh, peephole, weight_hr] =
            buffers.each_ref().map(|x| x.slice(..));
        given.push(RecurrentWeights {
            weight_ih,
            weight_hh,
            bias: (!weights.bias_ih.is_empty()).then_some((bias_ih, bias_hh)),
            peephole: (!weights.peephole.is_empty()).then_some(peephole),
            weight_hr: (!weights.weight_hr.is_empty()).then_some(weight_hr),
        });
    }
    let packed = gpu.zeros("packed", op.packed_size())?;
    gpu.run(|pass| op.pack_weights(pass, &given, packed.slice(..)))?;
    Ok(packed)
}
