//! Scaled dot-product attention, as far as the library has it.

mod cases;
mod check;
mod options;

use gatefold::reference::attention as reference;
use gatefold::reference::compare::Difference;
use gatefold::reference::convert;
use gatefold::{
    Attention as Operation, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape,
    Capabilities, Causal, Gpu, Plan, Variant,
};
use serde_json::{Value, json};

use super::launch::Output;
use super::random::Random;
use super::{Launch, Problem};
use crate::error::Result;
use crate::tensors::{Tensor, Tensors, floats};

pub use cases::cases;
pub use options::{BenchOptions, RunOptions, from_tensors, grid, showcase};

#[derive(Debug, Clone, Copy)]
struct Attention {
    shape: AttentionShape,
    config: AttentionConfig,
}

impl Attention {
    fn value_dim(&self) -> u32 {
        self.config.value_dim.unwrap_or(self.config.head_dim)
    }

    fn forced(&self, variant: Option<Variant>) -> AttentionConfig {
        AttentionConfig {
            variant,
            ..self.config
        }
    }

    fn reference(&self) -> reference::Problem<'static> {
        let (shape, config) = (&self.shape, &self.config);
        let plain = reference::Problem::plain(
            shape.batch as usize,
            shape.num_heads as usize,
            shape.num_kv_heads as usize,
            shape.q_len as usize,
            shape.kv_len as usize,
            config.head_dim as usize,
            self.value_dim() as usize,
        );
        reference::Problem {
            scale: config.scale.map_or(plain.scale, f64::from),
            causal: config.causal,
            ..plain
        }
    }

    /// Of `query`, `key`, `value`, `output`.
    fn dims(&self) -> [[usize; 4]; 4] {
        let p = self.reference();
        [
            [p.batch, p.num_heads, p.q_len, p.head_dim],
            [p.batch, p.num_kv_heads, p.kv_len, p.head_dim],
            [p.batch, p.num_kv_heads, p.kv_len, p.value_dim],
            [p.batch, p.num_heads, p.q_len, p.value_dim],
        ]
    }
}

const GIVEN: AttentionGiven = AttentionGiven {
    log_sum_exp: true,
    kv_lengths: false,
};

const INPUTS: [&str; 3] = ["query", "key", "value"];

impl Problem for Attention {
    fn op(&self) -> &'static str {
        "attention"
    }

    fn shape(&self) -> Vec<(&'static str, Value)> {
        let shape = &self.shape;
        vec![
            ("batch", json!(shape.batch)),
            ("heads", json!(shape.num_heads)),
            ("kv_heads", json!(shape.num_kv_heads)),
            ("q_len", json!(shape.q_len)),
            ("kv_len", json!(shape.kv_len)),
            ("head_dim", json!(self.config.head_dim)),
            ("value_dim", json!(self.value_dim())),
            ("causal", json!(causal_name(self.config.causal))),
        ]
    }

    fn options(&self) -> Vec<String> {
        let causal = causal_name(self.config.causal).map(|causal| format!("--causal={causal}"));
        let scale = self.config.scale.map(|scale| format!("--scale={scale}"));
        causal.into_iter().chain(scale).collect()
    }

    fn variants(&self, capabilities: &Capabilities) -> Vec<Variant> {
        self.config.variants(capabilities).collect()
    }

    fn plan(
        &self,
        capabilities: &Capabilities,
        variant: Option<Variant>,
    ) -> Result<Plan, gatefold::Error> {
        self.forced(variant).plan(capabilities, self.shape, GIVEN)
    }

    fn random(&self, seed: u64) -> Tensors {
        let mut random = Random::new(seed);
        let [query, key, value, _] = self.dims();
        // values not around 0: the mean of a row's only element may vanish, and its relative error with it
        let tensors = [(query, 0.0, 1.5), (key, 0.0, 1.0), (value, 0.7, 1.0)];
        INPUTS
            .iter()
            .zip(tensors)
            .map(|(&name, (shape, mean, deviation))| {
                let values = random.normals(shape.iter().product(), mean, deviation);
                (name.to_owned(), Tensor::f32(&shape, values))
            })
            .collect()
    }

    fn launch(&self, gpu: &Gpu, variant: Option<Variant>, inputs: &Tensors) -> Result<Launch> {
        let config = self.forced(variant);
        let plan = config.plan(gpu.context().capabilities(), self.shape, GIVEN)?;
        let upload = |name| -> Result<_> { Ok(gpu.upload(name, floats(inputs, name)?)?) };
        let [query, key, value] = [upload("query")?, upload("key")?, upload("value")?];
        let [.., dims] = self.dims();
        let output = Output::new(gpu, "output", &dims)?;
        let log_sum_exp = Output::new(gpu, "log_sum_exp", &dims[..3])?;
        let buffers = AttentionBuffers::new(
            query.slice(..),
            key.slice(..),
            value.slice(..),
            output.slice(),
        )
        .log_sum_exp(log_sum_exp.slice());
        let bound = Operation::new(gpu.context(), config)?.bind(self.shape, buffers)?;
        Ok(Launch::new(plan, vec![bound], vec![output, log_sum_exp]))
    }

    fn truth(&self, inputs: &Tensors) -> Result<Tensors> {
        let exact = |name| -> Result<_> { Ok(convert::<f64>(floats(inputs, name)?)) };
        let [query, key, value] = [exact("query")?, exact("key")?, exact("value")?];
        let truth = reference::attention(&self.reference(), &query, &key, &value);
        let [.., dims] = self.dims();
        Ok(Tensors::from([
            ("output".to_owned(), Tensor::f64(&dims, truth.output)),
            (
                "log_sum_exp".to_owned(),
                Tensor::f64(&dims[..3], truth.log_sum_exp),
            ),
        ]))
    }

    fn check(&self, inputs: &Tensors, got: &Tensors) -> Result<Result<f64, Box<Difference>>> {
        check::check(self, inputs, got)
    }
}

fn causal_name(causal: Causal) -> Option<String> {
    match causal {
        Causal::No => None,
        Causal::TopLeft => Some("top-left".into()),
        Causal::BottomRight => Some("bottom-right".into()),
        Causal::Offset(offset) => Some(offset.to_string()),
    }
}
