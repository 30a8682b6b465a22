//! RNN, LSTM and GRU over whole sequences, as far as the library has them.

pub mod call;
mod cases;
mod check;
mod gradients;
mod grid;
mod keras;
mod launch;
mod onnx;
mod options;
mod pytorch;
mod wanted;

use gatefold::reference::compare::Difference;
use gatefold::reference::recurrent as reference;
use gatefold::{
    Capabilities, Cell, ElementType, Given, Gpu, Plan, RecurrentBackwardGiven, RecurrentConfig,
    RecurrentShape, Tier, Variant,
};
use serde_json::{Value, json};

use super::{Launch, Problem};
use crate::args::RunCommon;
use crate::error::Result;
use crate::tensors::{Tensor, Tensors, get};
use call::Call;
use options::Format;
use wanted::Wanted;

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
        let able = |variant: &Variant| {
            let config = RecurrentConfig {
                variant: Some(*variant),
                ..self.config
            };
            let mut tiers = config.tiers(capabilities, self.shape.batch);
            match self.config.tier {
                None => true,
                // right on every device, only not fast
                Some(Tier::Persistent) => *variant != Variant::Cooperative,
                Some(forced) => tiers.any(|tier| tier == forced),
            }
        };
        self.config.variants(capabilities).filter(able).collect()
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
        launch::launch(self, gpu, variant, inputs)
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
        variant: Variant,
        inputs: &Tensors,
        got: &Tensors,
    ) -> Result<Result<f64, Box<Difference>>> {
        check::check(self, variant, inputs, got)
    }
}
