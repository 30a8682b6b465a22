//! A case of additive attention, and how it is run and judged in every variant, forward and backward.

use std::collections::HashSet;
use std::sync::OnceLock;

use gatefold::reference::additive_attention as reference;
use gatefold::reference::compare::{Tolerance, compare, compare_with};
use gatefold::reference::convert;
use gatefold::{
    AdditiveAttention, AdditiveAttentionBackwardBuffers, AdditiveAttentionBuffers,
    AdditiveAttentionConfig, AdditiveAttentionMask, AdditiveAttentionShape, Bound, ElementType,
    Gpu, Variant,
};

use super::{Output, Random, bits, gpu, guises};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: u32,
    pub q_len: u32,
    pub kv_len: u32,
    pub dim: u32,
    pub value_dim: u32,
    pub mask: Option<AdditiveAttentionMask>,
    pub kv_lengths: Option<&'static [i32]>,
    pub element: ElementType,
    /// Of the terms.
    pub magnitude: f32,
    /// Added to every `v`.
    pub v_bias: f32,
}

pub const SMALL: Case = Case {
    batch: 2,
    q_len: 37,
    kv_len: 53,
    dim: 20,
    value_dim: 17,
    mask: None,
    kv_lengths: None,
    element: ElementType::F32,
    magnitude: 1.0,
    v_bias: 0.0,
};

#[derive(Clone)]
pub struct Inputs {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub v: Vec<f32>,
    pub grad_output: Vec<f32>,
    pub mask: Vec<bool>,
    pub kv_lengths: Vec<i64>,
}

impl Inputs {
    pub fn problem<'a>(&'a self, case: &Case) -> reference::Problem<'a> {
        let shape = case.shape();
        reference::Problem {
            batch: case.batch as usize,
            q_len: case.q_len as usize,
            kv_len: case.kv_len as usize,
            dim: case.dim as usize,
            value_dim: case.value_dim as usize,
            mask: case.mask.map(|mask| reference::Mask {
                shape: mask.extents(&shape).map(|len| len as usize),
                values: &self.mask,
            }),
            kv_lengths: case.kv_lengths.map(|_| &self.kv_lengths[..]),
        }
    }
}

impl Case {
    pub fn config(&self, variant: Option<Variant>) -> AdditiveAttentionConfig {
        AdditiveAttentionConfig {
            dim: self.dim,
            value_dim: Some(self.value_dim),
            element: self.element,
            variant,
        }
    }

    pub fn shape(&self) -> AdditiveAttentionShape {
        AdditiveAttentionShape {
            batch: self.batch,
            q_len: self.q_len,
            kv_len: self.kv_len,
            mask: self.mask,
            kv_lengths: self.kv_lengths.is_some(),
        }
    }

    pub fn inputs(&self) -> Inputs {
        let [b, q, k] = [self.batch, self.q_len, self.kv_len].map(|len| len as usize);
        let (dim, value_dim) = (self.dim as usize, self.value_dim as usize);
        let mut random = Random::new(0xadd ^ u64::from(self.q_len * 1009 + self.kv_len));
        let mut rounded = |len, scale| -> Vec<f32> {
            let values = random.normals(len, scale);
            values.iter().map(|&x| self.element.round(x)).collect()
        };
        let query = rounded(b * q * dim, self.magnitude);
        let key = rounded(b * k * dim, self.magnitude);
        // not around 0: the mean of a row's only element may vanish, and its relative error with it
        let value = rounded(b * k * value_dim, 1.0);
        let value = value.iter().map(|&x| self.element.round(x + 0.7)).collect();
        let v = random.normals(dim, 3.0 / self.dim.max(2).ilog2() as f32);
        let v = v.iter().map(|v| v + self.v_bias).collect();
        let grad_output = random.normals(b * q * value_dim, 1.0);
        let extents = self.mask.map(|mask| mask.extents(&self.shape()));
        let mask_len = extents.map_or(0, |extents| extents.iter().product());
        Inputs {
            query,
            key,
            value,
            v,
            grad_output,
            mask: (0..mask_len).map(|_| random.uniform() < 0.6).collect(),
            kv_lengths: self.kv_lengths.map_or(vec![], |lengths| {
                lengths.iter().map(|&len| len.into()).collect()
            }),
        }
    }
}

/// Every result of a case.
pub const RESULTS: [&str; 7] = [
    "output",
    "log_sum_exp",
    "weights",
    "grad_query",
    "grad_key",
    "grad_value",
    "grad_v",
];

fn shapes(case: &Case) -> [Vec<usize>; 7] {
    let [b, q, k] = [case.batch, case.q_len, case.kv_len].map(|len| len as usize);
    let (dim, value_dim) = (case.dim as usize, case.value_dim as usize);
    [
        vec![b, q, value_dim],
        vec![b, q],
        vec![b, q, k],
        vec![b, q, dim],
        vec![b, k, dim],
        vec![b, k, value_dim],
        vec![dim],
    ]
}

/// The outputs of a case with the passes that write them.
pub struct Run {
    pub outputs: [Output; 7],
    scratch: Output,
    pub bounds: [Bound; 2],
}

impl Run {
    pub fn new(gpu: &Gpu, case: &Case, variant: Option<Variant>, inputs: &Inputs) -> Self {
        let upload = |x: &[f32]| gpu.upload("input", x).unwrap();
        let words = |x: &[f32]| gpu.upload("input", &case.element.words(x)).unwrap();
        let [query, key, value] = [&inputs.query, &inputs.key, &inputs.value].map(|x| words(x));
        let (v, grad_output) = (upload(&inputs.v), upload(&inputs.grad_output));
        let mut bytes: Vec<u8> = inputs.mask.iter().map(|&allowed| allowed.into()).collect();
        // what fills up the last word must not matter
        bytes.resize(bytes.len().next_multiple_of(4), 1);
        let mask = gpu.upload("mask", &bytes).unwrap();
        let lengths: Vec<i32> = inputs.kv_lengths.iter().map(|&len| len as i32).collect();
        let lengths = gpu.upload("kv_lengths", &lengths).unwrap();
        let outputs = shapes(case).map(|shape| Output::new(gpu, shape.iter().product()));
        let op = AdditiveAttention::new(gpu.context(), case.config(variant)).unwrap();
        let shape = case.shape();
        let scratch_size = op.scratch_size_backward(shape).unwrap();
        let scratch = Output::new(gpu, scratch_size as usize / 4);
        let slice = |i: usize| outputs[i].buffer.slice(..);
        let forward = AdditiveAttentionBuffers {
            mask: case.mask.map(|_| mask.slice(..)),
            kv_lengths: case.kv_lengths.map(|_| lengths.slice(..)),
            ..AdditiveAttentionBuffers::new(
                query.slice(..),
                key.slice(..),
                value.slice(..),
                v.slice(..),
                slice(0),
            )
            .log_sum_exp(slice(1))
            .weights(slice(2))
        };
        let backward = AdditiveAttentionBackwardBuffers {
            query: query.slice(..),
            key: key.slice(..),
            value: value.slice(..),
            v: v.slice(..),
            mask: forward.mask,
            kv_lengths: forward.kv_lengths,
            output: slice(0),
            log_sum_exp: slice(1),
            grad_output: grad_output.slice(..),
            grad_query: slice(3),
            grad_key: slice(4),
            grad_value: slice(5),
            grad_v: slice(6),
            scratch: scratch.buffer.slice(..),
        };
        let bounds = [
            op.bind(shape, forward).unwrap(),
            op.bind_backward(shape, backward).unwrap(),
        ];
        Self {
            outputs,
            scratch,
            bounds,
        }
    }

    /// Runs once, from poisoned outputs and scratch.
    pub fn once(&self, gpu: &Gpu) -> [Vec<f32>; 7] {
        self.outputs.iter().for_each(|output| output.poison(gpu));
        self.scratch.poison(gpu);
        gpu.run(|pass| {
            self.bounds.iter().for_each(|bound| bound.record(pass));
            Ok(())
        })
        .unwrap();
        // its canaries too
        self.scratch.read(gpu);
        self.outputs.each_ref().map(|output| output.read(gpu))
    }
}

/// Runs the case twice.
pub fn run(gpu: &Gpu, case: &Case, variant: Option<Variant>, inputs: &Inputs) -> [Vec<f32>; 7] {
    let run = Run::new(gpu, case, variant, inputs);
    let first = run.once(gpu);
    let second = run.once(gpu);
    for (name, (first, second)) in RESULTS.iter().zip(first.iter().zip(&second)) {
        assert_eq!(bits(first), bits(second), "{name}: two runs");
    }
    first
}

/// Every variant of every guise of a device that runs this case in a way of its own.
pub fn variants(guises: &[Gpu], case: &Case) -> Vec<(Gpu, Variant, String)> {
    let mut seen = HashSet::new();
    let mut variants = Vec::new();
    for guise in guises {
        let capabilities = *guise.context().capabilities();
        for variant in case.config(None).variants(&capabilities) {
            let config = case.config(Some(variant));
            let plan = config
                .plan(&capabilities, case.shape(), true, true)
                .unwrap();
            let constants = plan
                .dispatches
                .iter()
                .map(|d| (d.kernel.clone(), d.constants.clone()));
            if seen.insert((variant, constants.collect::<Vec<_>>())) {
                variants.push((guise.clone(), variant, plan.describe));
            }
        }
    }
    variants
}

/// The guises of the device, once: each has compiled kernels of its own. Without the first, the floor with naga's
/// checks on: its kernels take the longest to compile, and differ in nothing else from those of a GPU without
/// subgroups.
pub fn all_guises() -> &'static [Gpu] {
    static GUISES: OnceLock<Vec<Gpu>> = OnceLock::new();
    GUISES.get_or_init(|| gpu().map_or(vec![], |gpu| guises(gpu).split_off(1)))
}

/// Compares every variant of every guise of the device with the reference.
pub fn check(case: Case) {
    check_on(all_guises(), case, &case.inputs());
}

/// The truth, the magnitudes and the f32 yardstick of each result.
fn truth(case: &Case, inputs: &Inputs) -> [(Vec<f64>, Vec<f64>, Vec<f32>); 7] {
    let problem = inputs.problem(case);
    let given = [
        &inputs.query,
        &inputs.key,
        &inputs.value,
        &inputs.v,
        &inputs.grad_output,
    ];
    let exact = given.map(|x| convert::<f64>(x));
    let in_f64 = reference::Inputs {
        query: &exact[0],
        key: &exact[1],
        value: &exact[2],
        v: &exact[3],
    };
    let in_f32 = reference::Inputs {
        query: &inputs.query,
        key: &inputs.key,
        value: &inputs.value,
        v: &inputs.v,
    };
    let forward = reference::additive_attention(&problem, in_f64);
    let single = reference::additive_attention(&problem, in_f32);
    let (grad, magnitude) = reference::additive_attention_backward(&problem, in_f64, &exact[4]);
    let (single_grad, _) =
        reference::additive_attention_backward(&problem, in_f32, &inputs.grad_output);
    let same = |truth: Vec<f64>, yardstick| (truth.clone(), truth, yardstick);
    [
        same(forward.output, single.output),
        same(forward.log_sum_exp, single.log_sum_exp),
        same(forward.weights, single.weights),
        (grad.query, magnitude.query, single_grad.query),
        (grad.key, magnitude.key, single_grad.key),
        (grad.value, magnitude.value, single_grad.value),
        (grad.v, magnitude.v, single_grad.v),
    ]
}

/// Compares every variant of `guises` with the reference.
pub fn check_on(guises: &[Gpu], case: Case, inputs: &Inputs) {
    let truth = truth(&case, inputs);
    let shapes = shapes(&case);
    for (guise, variant, tile) in variants(guises, &case) {
        let got = run(&guise, &case, Some(variant), inputs);
        for (i, name) in RESULTS.iter().enumerate() {
            let (truth, magnitude, yardstick) = &truth[i];
            let agreement = if i < 3 {
                compare(
                    name,
                    &shapes[i],
                    &got[i],
                    truth,
                    yardstick,
                    Tolerance::FORWARD,
                )
            } else {
                let tolerance = Tolerance::GRADIENT;
                compare_with(
                    name, &shapes[i], &got[i], truth, magnitude, yardstick, tolerance,
                )
            };
            match agreement {
                Ok(agreement) if std::env::var("GATEFOLD_SHOW_ERRORS").is_ok() => {
                    let (error, allowed) = (agreement.error, agreement.allowed);
                    eprintln!("{name}: {error:.1e} of {allowed:.1e}; {variant}, {tile}");
                }
                Ok(_) => {}
                Err(difference) => panic!(
                    "{difference}\n{variant}, {tile}\n{case:?}\n{}",
                    guise.describe()
                ),
            }
        }
    }
}
