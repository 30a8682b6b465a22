//! Additive (Bahdanau) attention, forward and backward.

mod cases;
mod check;
mod options;

use gatefold::reference::additive_attention as reference;
use gatefold::reference::compare::Difference;
use gatefold::reference::convert;
use gatefold::{
    AdditiveAttention as Operation, AdditiveAttentionBackwardBuffers, AdditiveAttentionBuffers,
    AdditiveAttentionConfig, AdditiveAttentionShape, Capabilities, ElementType, Gpu, Plan, Variant,
};
use serde_json::{Value, json};

use super::launch::Output;
use super::random::Random;
use super::{Launch, Problem};
use crate::error::Result;
use crate::tensors::{Data, Tensor, Tensors, floats, get, integers};

pub use cases::cases;
pub use options::{BenchOptions, RunOptions, from_tensors, grid, showcase};

#[derive(Debug, Clone, Copy)]
struct Additive {
    shape: AdditiveAttentionShape,
    config: AdditiveAttentionConfig,
    weights: bool,
    grad: bool,
}

/// The float tensors that every call reads.
const INPUTS: [&str; 4] = ["query", "key", "value", "v"];

/// All results; those after the third only with `--grad`.
const RESULTS: [&str; 7] = [
    "output",
    "log_sum_exp",
    "weights",
    "grad_query",
    "grad_key",
    "grad_value",
    "grad_v",
];

/// The numbers of a problem in the reference's words, with the tensors that it borrows.
struct Given<'a> {
    mask: Option<(Vec<usize>, &'a [bool])>,
    kv_lengths: Option<&'a [i64]>,
}

impl Additive {
    fn forced(&self, variant: Option<Variant>) -> AdditiveAttentionConfig {
        AdditiveAttentionConfig {
            variant,
            ..self.config
        }
    }

    /// Batch, q_len, kv_len, dim, value_dim.
    fn extents(&self) -> [usize; 5] {
        let (shape, config) = (&self.shape, &self.config);
        [
            shape.batch,
            shape.q_len,
            shape.kv_len,
            config.dim,
            config.value_dim(),
        ]
        .map(|len| len as usize)
    }

    /// Whether the result `name` is asked for.
    fn wants(&self, name: &str) -> bool {
        match name {
            "weights" => self.weights,
            _ => self.grad || !name.starts_with("grad_"),
        }
    }

    /// Of an input or a result.
    fn dims(&self, name: &str) -> Vec<usize> {
        let [batch, q_len, kv_len, dim, value_dim] = self.extents();
        match name {
            "query" | "grad_query" => vec![batch, q_len, dim],
            "key" | "grad_key" => vec![batch, kv_len, dim],
            "value" | "grad_value" => vec![batch, kv_len, value_dim],
            "v" | "grad_v" => vec![dim],
            "weights" => vec![batch, q_len, kv_len],
            "log_sum_exp" => vec![batch, q_len],
            _ => vec![batch, q_len, value_dim],
        }
    }

    fn given<'a>(&self, inputs: &'a Tensors) -> Result<Given<'a>> {
        let extents = self.shape.mask.map(|mask| mask.extents(&self.shape));
        let mask = match extents {
            Some(extents) => {
                let extents = extents.iter().map(|&len| len as usize).collect();
                Some((extents, booleans(inputs, "mask")?))
            }
            None => None,
        };
        let kv_lengths = match self.shape.kv_lengths {
            true => Some(integers(inputs, "kv_lengths")?),
            false => None,
        };
        Ok(Given { mask, kv_lengths })
    }

    fn reference<'a>(&self, given: &'a Given<'_>) -> reference::Problem<'a> {
        let [batch, q_len, kv_len, dim, value_dim] = self.extents();
        reference::Problem {
            batch,
            q_len,
            kv_len,
            dim,
            value_dim,
            mask: given.mask.as_ref().map(|(shape, values)| reference::Mask {
                shape: [shape[0], shape[1], shape[2]],
                values,
            }),
            kv_lengths: given.kv_lengths,
        }
    }
}

/// The values of a mask, which must be there.
fn booleans<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a [bool]> {
    match &get(tensors, name)?.data {
        Data::Bool(values) => Ok(values),
        _ => Err(crate::error::Error::usage(format_args!(
            "{name}: expected type BOOL or U8"
        ))),
    }
}

impl Problem for Additive {
    fn op(&self) -> &'static str {
        "additive-attention"
    }

    fn shape(&self) -> Vec<(&'static str, Value)> {
        let (shape, config) = (&self.shape, &self.config);
        let mut words = vec![
            ("batch", json!(shape.batch)),
            ("q_len", json!(shape.q_len)),
            ("kv_len", json!(shape.kv_len)),
            ("dim", json!(config.dim)),
            ("value_dim", json!(config.value_dim())),
        ];
        if let Some(mask) = self.shape.mask {
            let [b, q, k] = mask.extents(&self.shape);
            words.push(("mask", json!(format!("{b}x{q}x{k}"))));
        }
        if self.shape.kv_lengths {
            words.push(("kv_lengths", json!(true)));
        }
        if self.grad {
            words.push(("grad", json!(true)));
        }
        words
    }

    fn options(&self) -> Vec<String> {
        let weights = self.weights.then(|| "--weights".into());
        let grad = self.grad.then(|| "--grad".into());
        weights.into_iter().chain(grad).collect()
    }

    fn dtype(&self) -> ElementType {
        self.config.element
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
        let forward = config.plan(capabilities, self.shape, true, self.weights)?;
        Ok(match self.grad {
            true => forward.then(config.plan_backward(capabilities, self.shape)?),
            false => forward,
        })
    }

    fn random(&self, seed: u64) -> Tensors {
        let mut random = Random::new(seed);
        let element = self.config.element;
        let spread = 1.5 / (self.config.dim as f32).sqrt().sqrt();
        // values not around 0: the mean of a row's only element may vanish, and its relative error with it
        let mut floats = vec![
            ("query", 0.0, 1.0, element),
            ("key", 0.0, 1.0, element),
            ("value", 0.7, 1.0, element),
            ("v", 0.0, spread, ElementType::F32),
        ];
        if self.grad {
            floats.push(("grad_output", 0.0, 1.0, ElementType::F32));
        }
        let mut tensors = Tensors::new();
        for (name, mean, deviation, element) in floats {
            let shape = self.dims(name);
            let values = random.normals(shape.iter().product(), mean, deviation);
            let values = values.into_iter().map(|x| element.round(x)).collect();
            let tensor = Tensor {
                element,
                ..Tensor::f32(&shape, values)
            };
            tensors.insert(name.to_owned(), tensor);
        }
        if let Some(mask) = self.shape.mask {
            let shape = mask.extents(&self.shape).map(|len| len as usize);
            let values = random.normals(shape.iter().product(), 0.3, 1.0);
            let values = values.into_iter().map(|x| x > 0.0).collect();
            tensors.insert("mask".into(), Tensor::bool(&shape, values));
        }
        if self.shape.kv_lengths {
            let batch = self.shape.batch as usize;
            let (last, keys) = (batch.max(2) - 1, i64::from(self.shape.kv_len));
            // from all keys to none
            let lengths = (0..batch).map(|b| keys - keys * b as i64 / last as i64);
            let lengths = Tensor::i64(&[batch], lengths.collect());
            tensors.insert("kv_lengths".into(), lengths);
        }
        tensors
    }

    fn launch(&self, gpu: &Gpu, variant: Option<Variant>, inputs: &Tensors) -> Result<Launch> {
        let plan = self.plan(gpu.context().capabilities(), variant)?;
        let op = Operation::new(gpu.context(), self.forced(variant))?;
        let element = self.config.element;
        let words =
            |name| -> Result<_> { Ok(gpu.upload(name, &element.words(floats(inputs, name)?))?) };
        let [query, key, value] = [words("query")?, words("key")?, words("value")?];
        let v = gpu.upload("v", floats(inputs, "v")?)?;
        let given = self.given(inputs)?;
        let mask = match &given.mask {
            Some((_, values)) => {
                let mut bytes: Vec<u8> = values.iter().map(|&allowed| allowed.into()).collect();
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                Some(gpu.upload("mask", &bytes)?)
            }
            None => None,
        };
        let kv_lengths = match given.kv_lengths {
            Some(lengths) => {
                let lengths: Vec<i32> = lengths.iter().map(|&len| len as i32).collect();
                Some(gpu.upload("kv_lengths", &lengths)?)
            }
            None => None,
        };
        let output = |name| Output::new(gpu, name, &self.dims(name));
        let wanted = RESULTS.into_iter().filter(|name| self.wants(name));
        let outputs: Vec<Output> = wanted.map(output).collect::<Result<_>>()?;
        // the gradients are the last
        let (forward, gradients) = outputs.split_at(if self.weights { 3 } else { 2 });
        let buffers = AdditiveAttentionBuffers {
            mask: mask.as_ref().map(|mask| mask.slice(..)),
            kv_lengths: kv_lengths.as_ref().map(|lengths| lengths.slice(..)),
            log_sum_exp: Some(forward[1].slice()),
            weights: forward.get(2).map(Output::slice),
            ..AdditiveAttentionBuffers::new(
                query.slice(..),
                key.slice(..),
                value.slice(..),
                v.slice(..),
                forward[0].slice(),
            )
        };
        let mut bounds = vec![op.bind(self.shape, buffers)?];
        if let [grad_query, grad_key, grad_value, grad_v] = gradients {
            let grad_output = gpu.upload("grad_output", floats(inputs, "grad_output")?)?;
            let scratch = gpu.zeros("scratch", op.scratch_size_backward(self.shape)?)?;
            let buffers = AdditiveAttentionBackwardBuffers {
                query: buffers.query,
                key: buffers.key,
                value: buffers.value,
                v: buffers.v,
                mask: buffers.mask,
                kv_lengths: buffers.kv_lengths,
                output: buffers.output,
                log_sum_exp: forward[1].slice(),
                grad_output: grad_output.slice(..),
                grad_query: grad_query.slice(),
                grad_key: grad_key.slice(),
                grad_value: grad_value.slice(),
                grad_v: grad_v.slice(),
                scratch: scratch.slice(..),
            };
            bounds.push(op.bind_backward(self.shape, buffers)?);
        }
        Ok(Launch::new(plan, bounds, outputs))
    }

    fn truth(&self, inputs: &Tensors) -> Result<Tensors> {
        let exact = |name| -> Result<_> { Ok(convert::<f64>(floats(inputs, name)?)) };
        let [query, key, value, v] = [exact("query")?, exact("key")?, exact("value")?, exact("v")?];
        let given = self.given(inputs)?;
        let problem = self.reference(&given);
        let exact_inputs = reference::Inputs {
            query: &query,
            key: &key,
            value: &value,
            v: &v,
        };
        let forward = reference::additive_attention(&problem, exact_inputs);
        let mut results = vec![
            ("output", forward.output),
            ("log_sum_exp", forward.log_sum_exp),
            ("weights", forward.weights),
        ];
        if self.grad {
            let grad_output = exact("grad_output")?;
            let (grad, _) =
                reference::additive_attention_backward(&problem, exact_inputs, &grad_output);
            results.extend([
                ("grad_query", grad.query),
                ("grad_key", grad.key),
                ("grad_value", grad.value),
                ("grad_v", grad.v),
            ]);
        }
        results.retain(|(name, _)| self.wants(name));
        let tensor = |(name, values): (&str, _)| {
            let tensor = Tensor::f64(&self.dims(name), values);
            (name.to_owned(), tensor)
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
