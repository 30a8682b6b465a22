//! Scaled dot-product attention.

mod cases;
mod check;
mod launch;
mod options;
mod random;
mod segments;
mod shown;

use gatefold::reference::compare::Difference;
use gatefold::{
    AttentionBackwardGiven, AttentionConfig, AttentionGiven, AttentionShape, Capabilities, Causal,
    Chosen, ElementType, Gpu, Plan, Variant,
};
use serde_json::{Value, json};

use super::{Launch, Problem};
use crate::error::Result;
use crate::tensors::Tensors;

pub use cases::cases;
pub use options::{BenchOptions, RunOptions, ScoreOptions, from_tensors, grid, showcase};
pub use shown::shown;

/// One call of the operation: which tensors it reads and which it writes.
#[derive(Debug, Clone)]
struct Attention {
    shape: AttentionShape,
    config: AttentionConfig,
    kv_lengths: bool,
    /// The bias's and the mask's own shape, 1 to 4 axes.
    bias_shape: Vec<usize>,
    mask_shape: Vec<usize>,
    grad: bool,
    /// Whose weights are wanted.
    weights: Option<Chosen>,
}

const INPUTS: [&str; 3] = ["query", "key", "value"];

impl Attention {
    /// Without options.
    fn plain(shape: AttentionShape, config: AttentionConfig) -> Self {
        Self {
            shape,
            config,
            kv_lengths: false,
            bias_shape: Vec::new(),
            mask_shape: Vec::new(),
            grad: false,
            weights: None,
        }
    }

    fn forced(&self, variant: Option<Variant>) -> AttentionConfig {
        AttentionConfig {
            variant,
            ..self.config
        }
    }

    fn given(&self) -> AttentionGiven {
        AttentionGiven {
            log_sum_exp: true,
            kv_lengths: self.kv_lengths,
        }
    }

    fn backward_given(&self) -> AttentionBackwardGiven {
        AttentionBackwardGiven {
            kv_lengths: self.kv_lengths,
            grad_bias: self.config.bias.is_some(),
            grad_sinks: self.config.sinks,
        }
    }

    /// Of `query`, `key`, `value`, `output`, as the files have them.
    fn dims(&self) -> [Vec<usize>; 4] {
        let shape = &self.shape;
        let [batch, heads, kv_heads, q_len, kv_len, dim, value_dim] = [
            shape.batch,
            shape.num_heads,
            shape.num_kv_heads,
            shape.q_len,
            shape.kv_len,
            self.config.head_dim,
            self.config.value_dim(),
        ]
        .map(|len| len as usize);
        if let Some(packed) = shape.packed {
            let [q, k] = [packed.query_tokens, packed.key_tokens].map(|len| len as usize);
            return [
                vec![q, heads, dim],
                vec![k, kv_heads, dim],
                vec![k, kv_heads, value_dim],
                vec![q, heads, value_dim],
            ];
        }
        let [kv_batch, kv_tokens] = match shape.paged {
            Some(paged) => [paged.num_blocks as usize, paged.block_size as usize],
            None => [batch, kv_len],
        };
        [
            vec![batch, heads, q_len, dim],
            vec![kv_batch, kv_heads, kv_tokens, dim],
            vec![kv_batch, kv_heads, kv_tokens, value_dim],
            vec![batch, heads, q_len, value_dim],
        ]
    }

    fn log_sum_exp_dims(&self) -> Vec<usize> {
        let [.., output] = self.dims();
        match self.shape.packed {
            Some(_) => vec![output[1], output[0]],
            None => output[..3].to_vec(),
        }
    }

    fn weights_dims(&self, chosen: Chosen) -> Vec<usize> {
        let shape = &self.shape;
        [shape.batch, chosen.num_heads, chosen.num_rows, shape.kv_len]
            .map(|len| len as usize)
            .to_vec()
    }

    /// Name and shape of every gradient.
    fn gradients(&self) -> Vec<(&'static str, Vec<usize>)> {
        let [query, key, value, _] = self.dims();
        let mut all = vec![
            ("grad_query", query),
            ("grad_key", key),
            ("grad_value", value),
        ];
        if self.config.bias.is_some() {
            all.push(("grad_bias", self.bias_shape.clone()));
        }
        if self.config.sinks {
            all.push(("grad_sinks", vec![self.shape.num_heads as usize]));
        }
        all
    }
}

impl Problem for Attention {
    fn op(&self) -> &'static str {
        "attention"
    }

    fn shape(&self) -> Vec<(&'static str, Value)> {
        let (shape, config) = (&self.shape, &self.config);
        let flag = |given: bool| if given { json!(true) } else { Value::Null };
        vec![
            ("batch", json!(shape.batch)),
            ("heads", json!(shape.num_heads)),
            ("kv_heads", json!(shape.num_kv_heads)),
            ("q_len", json!(shape.q_len)),
            ("kv_len", json!(shape.kv_len)),
            ("head_dim", json!(config.head_dim)),
            ("value_dim", json!(config.value_dim())),
            ("causal", json!(causal_name(config.causal))),
            ("window_left", json!(config.window_left)),
            ("window_right", json!(config.window_right)),
            ("softcap", json!(config.softcap)),
            ("dropout", json!(config.dropout)),
            ("bias", flag(config.bias.is_some())),
            ("mask", flag(config.mask)),
            ("alibi", flag(config.alibi)),
            ("sinks", flag(config.sinks)),
            ("kv_lengths", flag(self.kv_lengths)),
            ("packed", flag(shape.packed.is_some())),
            ("paged", flag(shape.paged.is_some())),
            ("grad", flag(self.grad)),
        ]
    }

    fn options(&self) -> Vec<String> {
        let config = &self.config;
        let number =
            |flag: &str, value: Option<String>| value.map(|value| format!("{flag}={value}"));
        let seed = config.dropout.map(|_| self.shape.seed.to_string());
        [
            number("--causal", causal_name(config.causal)),
            number("--scale", config.scale.map(|scale| scale.to_string())),
            number(
                "--window-left",
                config.window_left.map(|len| len.to_string()),
            ),
            number(
                "--window-right",
                config.window_right.map(|len| len.to_string()),
            ),
            number("--softcap", config.softcap.map(|cap| cap.to_string())),
            number("--dropout", config.dropout.map(|p| p.to_string())),
            number("--seed", seed),
            self.weights.map(|_| "--weights".to_owned()),
            self.grad.then(|| "--grad".to_owned()),
        ]
        .into_iter()
        .flatten()
        .collect()
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
        let mut plan = config.plan(capabilities, self.shape, self.given())?;
        if let Some(chosen) = self.weights {
            let lengths = self.kv_lengths;
            let weights = config.plan_weights(capabilities, self.shape, chosen, lengths)?;
            plan = plan.then(weights);
        }
        if self.grad {
            let given = self.backward_given();
            plan = plan.then(config.plan_backward(capabilities, self.shape, given)?);
        }
        Ok(plan)
    }

    fn random(&self, seed: u64) -> Tensors {
        random::tensors(self, seed)
    }

    fn launch(&self, gpu: &Gpu, variant: Option<Variant>, inputs: &Tensors) -> Result<Launch> {
        launch::launch(self, gpu, variant, inputs)
    }

    fn truth(&self, inputs: &Tensors) -> Result<Tensors> {
        segments::truth(self, inputs)
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

fn causal_name(causal: Causal) -> Option<String> {
    match causal {
        Causal::No => None,
        Causal::TopLeft => Some("top-left".into()),
        Causal::BottomRight => Some("bottom-right".into()),
        Causal::Offset(offset) => Some(offset.to_string()),
    }
}
