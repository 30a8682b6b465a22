//! minGRU and minLSTM over whole sequences.

mod check;
mod options;

use std::ops::Range;

use gatefold::reference::compare::Difference;
use gatefold::reference::min_recurrent::{self as reference, Optional, Weights};
use gatefold::reference::{Real, convert};
use gatefold::{
    Candidate, Capabilities, Gpu, MinCell, MinRecurrent as Operation, MinRecurrentBackwardBuffers,
    MinRecurrentBackwardGiven, MinRecurrentBuffers, MinRecurrentConfig, MinRecurrentGiven,
    MinRecurrentShape, MinRecurrentWeights, Plan, Variant, wgpu,
};
use serde_json::{Value, json};

use super::launch::Output;
use super::random::Random;
use super::recurrent::call::lengths;
use super::{Launch, Problem, slice, upload};
use crate::error::Result;
use crate::tensors::{Tensor, Tensors, floats, get};

pub use options::{BenchOptions, RunOptions, cases, from_tensors, grid, showcase};

#[derive(Debug, Clone, Copy)]
struct MinRecurrent {
    shape: MinRecurrentShape,
    config: MinRecurrentConfig,
    h_0: bool,
    lengths: bool,
    bias: bool,
    batch_first: bool,
    grad: Option<Grad>,
}

/// Which gradients there are.
#[derive(Debug, Clone, Copy)]
struct Grad {
    output: bool,
    h_n: bool,
}

/// A result as the device has it and as it is handed out: with its axes in another order.
struct Wanted {
    name: String,
    shape: Vec<usize>,
    order: &'static [usize],
}

/// The gradient of a weight: its shape, and its elements of `grad_weights`.
struct Part {
    name: String,
    shape: Vec<usize>,
    elements: Range<usize>,
}

/// The tensors of a call, time first.
struct Call<R> {
    input: Vec<R>,
    weights: Vec<Weights<R>>,
    h_0: Option<Vec<R>>,
    lengths: Option<Vec<u32>>,
    grad_output: Option<Vec<R>>,
    grad_h_n: Option<Vec<R>>,
}

impl MinRecurrent {
    fn forced(&self, variant: Option<Variant>) -> MinRecurrentConfig {
        MinRecurrentConfig {
            variant,
            ..self.config
        }
    }

    fn given(&self) -> MinRecurrentGiven {
        MinRecurrentGiven {
            h_0: self.h_0,
            lengths: self.lengths,
            h_n: true,
            reserve: self.grad.is_some(),
        }
    }

    fn given_backward(&self, grad: Grad) -> MinRecurrentBackwardGiven {
        MinRecurrentBackwardGiven {
            h_0: self.h_0,
            lengths: self.lengths,
            grad_output: grad.output,
            grad_h_n: grad.h_n,
            grad_input: true,
            grad_h_0: self.h_0,
        }
    }

    fn rows(&self) -> usize {
        (self.config.cell.num_gates() * self.config.hidden_size) as usize
    }

    /// Length of what a layer reads.
    fn layer_input(&self, layer: u32) -> usize {
        match layer {
            0 => self.config.input_size as usize,
            _ => self.config.hidden_size as usize,
        }
    }

    /// Every result but the gradients of the weights.
    fn results(&self) -> Vec<Wanted> {
        let order: &[usize] = if self.batch_first {
            &[1, 0, 2]
        } else {
            &[0, 1, 2]
        };
        let (seq_len, batch) = (self.shape.seq_len as usize, self.shape.batch as usize);
        let hidden = self.config.hidden_size as usize;
        let states = [self.config.num_layers as usize, batch, hidden];
        let wanted = |name: &str, shape: [usize; 3], order| Wanted {
            name: name.to_owned(),
            shape: shape.to_vec(),
            order,
        };
        let mut all = vec![
            wanted("output", [seq_len, batch, hidden], order),
            wanted("h_n", states, &[0, 1, 2]),
        ];
        if self.grad.is_some() {
            let input = [seq_len, batch, self.config.input_size as usize];
            all.push(wanted("grad_input", input, order));
            if self.h_0 {
                all.push(wanted("grad_h_0", states, &[0, 1, 2]));
            }
        }
        all
    }

    /// The gradients of the weights: name, shape, elements of `grad_weights`.
    fn weight_gradients(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        for layer in 0..self.config.num_layers {
            let [weight, bias] = self.config.gradient_elements(layer);
            let range = |elements: Range<u64>| elements.start as usize..elements.end as usize;
            parts.push(Part {
                name: format!("grad_weight_l{layer}"),
                shape: vec![self.rows(), self.layer_input(layer)],
                elements: range(weight),
            });
            if self.bias {
                parts.push(Part {
                    name: format!("grad_bias_l{layer}"),
                    shape: vec![self.rows()],
                    elements: range(bias),
                });
            }
        }
        parts
    }

    fn call(&self, inputs: &Tensors) -> Result<Call<f32>> {
        let ordered = |name: &str| -> Result<Vec<f32>> {
            Ok(match self.batch_first {
                true => get(inputs, name)?.permuted(&[1, 0, 2]).into_f32(),
                false => floats(inputs, name)?.to_vec(),
            })
        };
        let plain = |name: &str| -> Result<Vec<f32>> { Ok(floats(inputs, name)?.to_vec()) };
        let weights = (0..self.config.num_layers).map(|layer| -> Result<_> {
            Ok(Weights {
                weight: plain(&format!("weight_l{layer}"))?,
                bias: match self.bias {
                    true => plain(&format!("bias_l{layer}"))?,
                    false => Vec::new(),
                },
            })
        });
        let MinRecurrentShape { seq_len, batch } = self.shape;
        let has = |which: fn(&Grad) -> bool| self.grad.as_ref().is_some_and(which);
        Ok(Call {
            input: ordered("input")?,
            weights: weights.collect::<Result<_>>()?,
            h_0: self.h_0.then(|| plain("h_0")).transpose()?,
            lengths: lengths(inputs, "lengths", batch, seq_len)?,
            grad_output: has(|grad| grad.output)
                .then(|| ordered("grad_output"))
                .transpose()?,
            grad_h_n: has(|grad| grad.h_n)
                .then(|| plain("grad_h_n"))
                .transpose()?,
        })
    }
}

impl Call<f32> {
    fn convert<R: Real>(&self) -> Call<R> {
        let optional = |values: &Option<Vec<f32>>| values.as_ref().map(|values| convert(values));
        Call {
            input: convert(&self.input),
            weights: self.weights.iter().map(Weights::convert).collect(),
            h_0: optional(&self.h_0),
            lengths: self.lengths.clone(),
            grad_output: optional(&self.grad_output),
            grad_h_n: optional(&self.grad_h_n),
        }
    }
}

impl<R: Real> Call<R> {
    /// Every result by name, time first.
    fn compute(&self, problem: &MinRecurrent) -> Vec<(String, Vec<R>)> {
        let (config, shape) = (&problem.config, problem.shape);
        let optional = Optional {
            h_0: self.h_0.as_deref(),
            lengths: self.lengths.as_deref(),
        };
        let (input, weights) = (&self.input, &self.weights);
        let forward = reference::min_recurrent(config, shape, input, weights, optional);
        let (outputs, states) = (forward.output.len(), forward.h_n.len());
        let mut results = vec![
            ("output".to_owned(), forward.output),
            ("h_n".to_owned(), forward.h_n),
        ];
        if problem.grad.is_some() {
            let or_zeros = |values: &Option<Vec<R>>, len| match values {
                Some(values) => values.clone(),
                None => vec![R::ZERO; len],
            };
            let grad_output = or_zeros(&self.grad_output, outputs);
            let grad_h_n = or_zeros(&self.grad_h_n, states);
            let gradients = reference::min_recurrent_backward(
                config,
                shape,
                input,
                weights,
                optional,
                &grad_output,
                &grad_h_n,
            );
            results.push(("grad_input".to_owned(), gradients.input));
            if problem.h_0 {
                results.push(("grad_h_0".to_owned(), gradients.h_0));
            }
            for (layer, weights) in gradients.weights.into_iter().enumerate() {
                results.push((format!("grad_weight_l{layer}"), weights.weight));
                if problem.bias {
                    results.push((format!("grad_bias_l{layer}"), weights.bias));
                }
            }
        }
        results
    }
}

impl Problem for MinRecurrent {
    fn op(&self) -> &'static str {
        name(self.config.cell)
    }

    fn shape(&self) -> Vec<(&'static str, Value)> {
        let (shape, config) = (&self.shape, &self.config);
        let mut words = vec![
            ("batch", json!(shape.batch)),
            ("seq_len", json!(shape.seq_len)),
            ("input_size", json!(config.input_size)),
            ("hidden_size", json!(config.hidden_size)),
            ("layers", json!(config.num_layers)),
        ];
        if config.reverse {
            words.push(("reverse", json!(true)));
        }
        if self.grad.is_some() {
            words.push(("grad", json!(true)));
        }
        words
    }

    fn options(&self) -> Vec<String> {
        let positive = self.config.candidate == Candidate::Positive;
        let positive = positive.then(|| "--candidate=positive".to_owned());
        let reverse = self.config.reverse.then(|| "--reverse".to_owned());
        let chunk = self.config.chunk_len;
        let chunk = chunk.map(|len| format!("--chunk-len={len}"));
        let grad = self.grad.map(|_| "--grad".to_owned());
        [positive, reverse, chunk, grad]
            .into_iter()
            .flatten()
            .collect()
    }

    fn steps(&self) -> Option<u64> {
        Some(self.shape.seq_len.into())
    }

    fn variants(&self, capabilities: &Capabilities) -> Vec<Variant> {
        self.config.variants(capabilities).collect()
    }

    fn plan(
        &self,
        capabilities: &Capabilities,
        variant: Option<Variant>,
    ) -> Result<Plan, gatefold::Error> {
        let config = self.forced(variant);
        let plan = config.plan(capabilities, self.shape, self.given())?;
        Ok(match self.grad {
            Some(grad) => {
                let given = self.given_backward(grad);
                plan.then(config.plan_backward(capabilities, self.shape, given)?)
            }
            None => plan,
        })
    }

    /// Weights as PyTorch initialises them, but larger.
    fn random(&self, seed: u64) -> Tensors {
        let mut random = Random::new(seed);
        let (shape, config) = (&self.shape, &self.config);
        let (seq_len, batch) = (shape.seq_len as usize, shape.batch as usize);
        let hidden = config.hidden_size as usize;
        let mut tensors = Tensors::new();
        let mut add = |name: &str, shape: &[usize], deviation| {
            let values = random.normals(shape.iter().product(), 0.0, deviation);
            tensors.insert(name.to_owned(), Tensor::f32(shape, values));
        };
        add("input", &[seq_len, batch, config.input_size as usize], 1.0);
        for layer in 0..config.num_layers {
            let size = self.layer_input(layer);
            let deviation = 1.0 / (size as f32).sqrt();
            add(&format!("weight_l{layer}"), &[self.rows(), size], deviation);
            if self.bias {
                add(&format!("bias_l{layer}"), &[self.rows()], 0.5);
            }
        }
        let states = [config.num_layers as usize, batch, hidden];
        if self.h_0 {
            add("h_0", &states, 1.0);
        }
        if let Some(grad) = self.grad {
            if grad.output {
                add("grad_output", &[seq_len, batch, hidden], 0.5);
            }
            if grad.h_n {
                add("grad_h_n", &states, 1.0);
            }
        }
        if self.lengths {
            let lengths = super::some_lengths(batch, seq_len);
            tensors.insert("lengths".to_owned(), lengths);
        }
        tensors
    }

    fn launch(&self, gpu: &Gpu, variant: Option<Variant>, inputs: &Tensors) -> Result<Launch> {
        let plan = self.plan(gpu.context().capabilities(), variant)?;
        let op = Operation::new(gpu.context(), self.forced(variant))?;
        let call = self.call(inputs)?;
        let packed = pack(gpu, &op, &call.weights)?;
        let input = gpu.upload("input", &call.input)?;
        let h_0 = upload(gpu, "h_0", call.h_0.as_deref())?;
        let lengths = upload(gpu, "lengths", call.lengths.as_deref())?;
        let poisoned = |name, size: u64| gpu.upload(name, &vec![f32::NAN; size as usize / 4]);
        let scratch = poisoned("scratch", plan.scratch_size)?;
        let results = self.results().into_iter();
        let mut outputs: Vec<Output> = results
            .map(|wanted| Output::permuted(gpu, wanted.name, &wanted.shape, wanted.order))
            .collect::<Result<_>>()?;
        let reserve = match self.grad {
            Some(_) => Some(poisoned("reserve", op.reserve_size(self.shape)?)?),
            None => None,
        };
        if self.grad.is_some() {
            let len = self.config.gradient_size() as usize / 4;
            outputs.push(Output::new(gpu, "grad_weights", &[len])?);
        }
        let buffers = MinRecurrentBuffers {
            h_0: slice(&h_0),
            lengths: slice(&lengths),
            h_n: Some(outputs[1].slice()),
            reserve: slice(&reserve),
            ..MinRecurrentBuffers::new(
                input.slice(..),
                packed.slice(..),
                outputs[0].slice(),
                scratch.slice(..),
            )
        };
        let mut bounds = vec![op.bind(self.shape, buffers)?];
        if let Some(reserve) = &reserve {
            let grad_output = upload(gpu, "grad_output", call.grad_output.as_deref())?;
            let grad_h_n = upload(gpu, "grad_h_n", call.grad_h_n.as_deref())?;
            let grad_weights = &outputs[outputs.len() - 1];
            let buffers = MinRecurrentBackwardBuffers {
                h_0: slice(&h_0),
                lengths: slice(&lengths),
                grad_output: slice(&grad_output),
                grad_h_n: slice(&grad_h_n),
                grad_input: Some(outputs[2].slice()),
                grad_h_0: self.h_0.then(|| outputs[3].slice()),
                ..MinRecurrentBackwardBuffers::new(
                    input.slice(..),
                    packed.slice(..),
                    outputs[0].slice(),
                    reserve.slice(..),
                    grad_weights.slice(),
                    scratch.slice(..),
                )
            };
            bounds.push(op.bind_backward(self.shape, buffers)?);
        }
        let parts = self.weight_gradients();
        let split = move |mut tensors: Tensors| {
            if let Some(joined) = tensors.remove("grad_weights") {
                let values = joined.into_f32();
                tensors.extend(parts.iter().map(|part| {
                    let values = values[part.elements.clone()].to_vec();
                    (part.name.clone(), Tensor::f32(&part.shape, values))
                }));
            }
            Ok(tensors)
        };
        Ok(Launch::new(plan, bounds, outputs).finished_by(split))
    }

    fn truth(&self, inputs: &Tensors) -> Result<Tensors> {
        let results = self.call(inputs)?.convert::<f64>().compute(self);
        let (wanted, gradients) = (self.results(), self.weight_gradients());
        let tensor = |(name, values): (String, Vec<f64>)| {
            let tensor = match wanted.iter().find(|wanted| wanted.name == name) {
                Some(wanted) => Tensor::f64(&wanted.shape, values).permuted(wanted.order),
                None => {
                    let part = gradients.iter().find(|part| part.name == name);
                    let shape = part.map_or_else(Vec::new, |part| part.shape.clone());
                    Tensor::f64(&shape, values)
                }
            };
            (name, tensor)
        };
        Ok(results.into_iter().map(tensor).collect())
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

fn name(cell: MinCell) -> &'static str {
    match cell {
        MinCell::Gru => "mingru",
        MinCell::Lstm => "minlstm",
    }
}

/// The weights on the device, in the kernels' layout.
fn pack(gpu: &Gpu, op: &Operation, weights: &[Weights<f32>]) -> Result<wgpu::Buffer> {
    let mut buffers = Vec::new();
    for weights in weights {
        let upload = |values: &[f32]| gpu.upload("weights", values);
        buffers.push((upload(&weights.weight)?, upload(&weights.bias)?));
    }
    let given = buffers.iter().zip(weights);
    let given = given.map(|((weight, bias), values)| MinRecurrentWeights {
        weight: weight.slice(..),
        bias: (!values.bias.is_empty()).then(|| bias.slice(..)),
    });
    let given: Vec<_> = given.collect();
    let packed = gpu.zeros("packed", op.packed_size())?;
    gpu.run(|pass| op.pack_weights(pass, &given, packed.slice(..)))?;
    Ok(packed)
}
