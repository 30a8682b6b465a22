//! Gradients of a case of attention, and how they are judged.

use std::collections::HashSet;

use gatefold::reference::attention as reference;
use gatefold::reference::compare::{Tolerance, compare_with};
use gatefold::reference::convert;
use gatefold::{Attention, AttentionBackwardBuffers, AttentionBackwardGiven};
use gatefold::{Gpu, Variant};

use super::attention::{Case, Inputs, Uploaded, reorder};
use super::{Output, bits};

/// Gradients of query, key, value, bias and sinks, the last two empty where the case has none.
pub type Gradients = [Vec<f32>; 5];

/// Runs forward and backward twice.
pub fn run(gpu: &Gpu, case: &Case, variant: Variant, inputs: &Inputs) -> Gradients {
    let p = case.problem(inputs);
    let uploaded = Uploaded::new(gpu, case, inputs);
    let rows = p.batch * p.num_heads * p.q_len;
    let keys = p.batch * p.num_kv_heads * p.kv_len;
    let dims = [
        [p.batch, p.num_heads, p.q_len, p.head_dim],
        [p.batch, p.num_kv_heads, p.kv_len, p.head_dim],
        [p.batch, p.num_kv_heads, p.kv_len, p.value_dim],
        [p.batch, p.num_heads, p.q_len, p.value_dim],
    ];
    let output = Output::new(gpu, rows * p.value_dim);
    let log_sum_exp = Output::new(gpu, rows);
    let op = Attention::new(gpu.context(), case.config(Some(variant))).unwrap();
    let shape = case.shape();
    let forward_scratch = Output::new(gpu, op.scratch_size(shape).unwrap() as usize / 4);
    let scratch = Output::new(gpu, op.backward_scratch_size(shape).unwrap() as usize / 4);
    let forward = uploaded
        .buffers(
            case,
            output.buffer.slice(..),
            forward_scratch.buffer.slice(..),
        )
        .log_sum_exp(log_sum_exp.buffer.slice(..));
    let grad_output = reorder(&inputs.grad_output, case.layout, dims[3], false);
    let grad_output = gpu.upload("grad_output", &grad_output).unwrap();
    let sinks = if case.sinks { p.num_heads } else { 0 };
    let lens = [
        rows * p.head_dim,
        keys * p.head_dim,
        keys * p.value_dim,
        inputs.bias.len(),
        sinks,
    ];
    let gradients = lens.map(|len| Output::new(gpu, len));
    let bound = op.bind(shape, forward).unwrap();
    let backward = op
        .bind_backward(
            shape,
            AttentionBackwardBuffers {
                forward: uploaded
                    .buffers(case, output.buffer.slice(..), scratch.buffer.slice(..))
                    .log_sum_exp(log_sum_exp.buffer.slice(..)),
                grad_output: grad_output.slice(..),
                grad_query: gradients[0].buffer.slice(..),
                grad_key: gradients[1].buffer.slice(..),
                grad_value: gradients[2].buffer.slice(..),
                grad_bias: case.bias.map(|_| gradients[3].buffer.slice(..)),
                grad_sinks: case.sinks.then(|| gradients[4].buffer.slice(..)),
            },
        )
        .unwrap();
    let once = || {
        let outputs = [&output, &log_sum_exp, &forward_scratch, &scratch];
        outputs
            .into_iter()
            .chain(&gradients)
            .for_each(|x| x.poison(gpu));
        gpu.run(|pass| {
            bound.record(pass);
            backward.record(pass);
            Ok(())
        })
        .unwrap();
        scratch.read(gpu);
        gradients.each_ref().map(|x| x.read(gpu))
    };
    let [first, second] = [once(), once()];
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(bits(first), bits(second), "two runs");
    }
    let [query, key, value, bias, sinks] = first;
    let back = |x: &[f32], at| reorder(x, case.layout, dims[at], true);
    [back(&query, 0), back(&key, 1), back(&value, 2), bias, sinks]
}

/// Every variant of every guise that runs this case in a way of its own.
pub fn variants(guises: &[Gpu], case: &Case) -> Vec<(Gpu, Variant, String)> {
    let given = AttentionBackwardGiven {
        kv_lengths: case.kv_lengths.is_some(),
        grad_bias: case.bias.is_some(),
        grad_sinks: case.sinks,
    };
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for guise in guises {
        let capabilities = *guise.context().capabilities();
        for variant in case.config(None).variants(&capabilities) {
            let plan = case
                .config(Some(variant))
                .plan_backward(&capabilities, case.shape(), given)
                .unwrap();
            let forms = plan.dispatches.iter();
            let forms = forms.map(|d| (d.kernel.clone(), d.constants.clone()));
            if seen.insert(forms.collect::<Vec<_>>()) {
                found.push((guise.clone(), variant, plan.describe));
            }
        }
    }
    found
}

pub fn check_inputs(guises: &[Gpu], case: Case, inputs: &Inputs) {
    check_these(variants(guises, &case), case, inputs);
}

/// Compares one variant with the reference, if the device can run it.
pub fn check_variant(gpu: &Gpu, variant: Variant, case: Case, inputs: &Inputs) {
    let mut these = variants(std::slice::from_ref(gpu), &case);
    these.retain(|(_, other, _)| *other == variant);
    check_these(these, case, inputs);
}

/// Compares these forms with the reference.
pub fn check_these(variants: Vec<(Gpu, Variant, String)>, case: Case, inputs: &Inputs) {
    let judge = Judge::new(&case, inputs);
    for (guise, variant, tile) in variants {
        let got = run(&guise, &case, variant, inputs);
        if let Err(difference) = judge.check(got, variant) {
            panic!(
                "{difference}\n{variant}, {tile}\n{case:?}\n{}",
                guise.describe()
            );
        }
    }
}

/// What the reference says of a case.
pub struct Judge {
    shapes: [Vec<usize>; 5],
    truth: reference::Gradients<f64>,
    magnitude: reference::Gradients<f64>,
    yardstick: reference::Gradients<f32>,
}

impl Judge {
    pub fn new(case: &Case, inputs: &Inputs) -> Self {
        let p = case.problem(inputs);
        let [query, key, value] = [&inputs.query, &inputs.key, &inputs.value];
        let exact = [query, key, value, &inputs.grad_output].map(|x| convert::<f64>(x));
        let [q, k, v, g] = &exact;
        let truth = reference::backward(&p, q, k, v, g);
        let keys = p.batch * p.num_kv_heads;
        Self {
            shapes: [
                vec![p.batch * p.num_heads, p.q_len, p.head_dim],
                vec![keys, p.kv_len, p.head_dim],
                vec![keys, p.kv_len, p.value_dim],
                p.bias.map_or([0; 4], |bias| bias.shape).to_vec(),
                vec![truth.sinks.len()],
            ],
            truth,
            magnitude: reference::backward_magnitude(&p, q, k, v, g),
            yardstick: reference::backward(&p, query, key, value, &inputs.grad_output),
        }
    }

    /// The worst element of the first gradient that is not right.
    pub fn check(&self, got: Gradients, variant: Variant) -> Result<(), String> {
        fn all<R>(gradients: &reference::Gradients<R>) -> [&[R]; 5] {
            let reference::Gradients {
                query,
                key,
                value,
                bias,
                sinks,
            } = gradients;
            [query, key, value, bias, sinks]
        }
        const NAMES: [&str; 5] = [
            "grad_query",
            "grad_key",
            "grad_value",
            "grad_bias",
            "grad_sinks",
        ];
        let (truth, magnitude) = (all(&self.truth), all(&self.magnitude));
        let yardstick = all(&self.yardstick);
        let tolerance = Tolerance::GRADIENT.of(variant);
        for (at, name) in NAMES.into_iter().enumerate() {
            compare_with(
                name,
                &self.shapes[at],
                &got[at],
                truth[at],
                magnitude[at],
                yardstick[at],
                tolerance,
            )
            .map_err(|difference| difference.to_string())?;
        }
        Ok(())
    }
}
