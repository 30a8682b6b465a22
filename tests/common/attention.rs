//! A case of attention, and how it is run and judged in every variant.

use std::collections::HashSet;

use gatefold::Variant;
use gatefold::reference::compare::{Tolerance, compare};
use gatefold::reference::{attention as reference, convert};
use gatefold::{Attention, AttentionBuffers, AttentionConfig, AttentionShape, Causal, Gpu, Layout};

use super::{Output, Random, bits, gpu, guises};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: u32,
    pub num_heads: u32,
    pub num_kv_heads: u32,
    pub q_len: u32,
    pub kv_len: u32,
    pub head_dim: u32,
    pub value_dim: u32,
    pub causal: Causal,
    pub scale: Option<f32>,
    pub layout: Layout,
    pub magnitude: f32,
}

pub const SMALL: Case = Case {
    batch: 2,
    num_heads: 3,
    num_kv_heads: 3,
    q_len: 37,
    kv_len: 53,
    head_dim: 16,
    value_dim: 16,
    causal: Causal::No,
    scale: None,
    layout: Layout::Bhsd,
    magnitude: 1.5,
};

impl Case {
    pub fn config(&self, variant: Option<Variant>) -> AttentionConfig {
        AttentionConfig {
            head_dim: self.head_dim,
            value_dim: Some(self.value_dim),
            scale: self.scale,
            causal: self.causal,
            variant,
        }
    }

    pub fn shape(&self) -> AttentionShape {
        let Self {
            batch,
            num_heads,
            num_kv_heads,
            q_len,
            kv_len,
            ..
        } = *self;
        AttentionShape::new(batch, num_heads, num_kv_heads, q_len, kv_len).with_layout(self.layout)
    }

    pub fn problem(&self) -> reference::Problem<'static> {
        let plain = reference::Problem::plain(
            self.batch as usize,
            self.num_heads as usize,
            self.num_kv_heads as usize,
            self.q_len as usize,
            self.kv_len as usize,
            self.head_dim as usize,
            self.value_dim as usize,
        );
        reference::Problem {
            scale: self.scale.map_or(plain.scale, f64::from),
            causal: self.causal,
            ..plain
        }
    }

    pub fn inputs(&self) -> [Vec<f32>; 3] {
        let p = self.problem();
        let mut random = Random::new(0x5eed ^ u64::from(self.q_len * 1009 + self.kv_len));
        let keys = p.batch * p.num_kv_heads * p.kv_len;
        let query = random.normals(p.batch * p.num_heads * p.q_len * p.head_dim, self.magnitude);
        let key = random.normals(keys * p.head_dim, self.magnitude);
        // not around 0: the mean of a row's only element may vanish, and its relative error with it
        let value = random
            .normals(keys * p.value_dim, 1.0)
            .iter()
            .map(|v| v + 0.7)
            .collect();
        [query, key, value]
    }
}

/// From `[batch, heads, len, dim]` to the layout's order, and back with the inverse.
pub fn reorder(
    x: &[f32],
    layout: Layout,
    [batch, heads, len, dim]: [usize; 4],
    back: bool,
) -> Vec<f32> {
    if layout == Layout::Bhsd {
        return x.to_vec();
    }
    let mut out = vec![0.0; x.len()];
    for i in 0..batch * heads * len {
        let (b, h, t) = (i / len / heads, i / len % heads, i % len);
        let j = (b * len + t) * heads + h;
        let (from, to) = if back { (j, i) } else { (i, j) };
        out[to * dim..][..dim].copy_from_slice(&x[from * dim..][..dim]);
    }
    out
}

/// Runs the case twice; gives back output and log_sum_exp of contiguous tensors.
pub fn run(gpu: &Gpu, case: &Case, variant: Variant, inputs: &[Vec<f32>; 3]) -> [Vec<f32>; 2] {
    let p = case.problem();
    let kv = |dim| [p.batch, p.num_kv_heads, p.kv_len, dim];
    let out = [p.batch, p.num_heads, p.q_len, p.value_dim];
    let dims = [
        [p.batch, p.num_heads, p.q_len, p.head_dim],
        kv(p.head_dim),
        kv(p.value_dim),
    ];
    let [query, key, value] = std::array::from_fn(|i| {
        gpu.upload("input", &reorder(&inputs[i], case.layout, dims[i], false))
            .unwrap()
    });
    let rows = p.batch * p.num_heads * p.q_len;
    let output = Output::new(gpu, rows * p.value_dim);
    let log_sum_exp = Output::new(gpu, rows);
    let op = Attention::new(gpu.context(), case.config(Some(variant))).unwrap();
    let buffers = AttentionBuffers::new(
        query.slice(..),
        key.slice(..),
        value.slice(..),
        output.buffer.slice(..),
    )
    .log_sum_exp(log_sum_exp.buffer.slice(..));
    let bound = op.bind(case.shape(), buffers).unwrap();
    let once = || {
        output.poison(gpu);
        log_sum_exp.poison(gpu);
        gpu.run(|pass| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
        [output.read(gpu), log_sum_exp.read(gpu)]
    };
    let first = once();
    let second = once();
    assert_eq!(
        first.each_ref().map(|x| bits(x)),
        second.each_ref().map(|x| bits(x)),
        "two runs"
    );
    let [output, log_sum_exp] = first;
    [reorder(&output, case.layout, out, true), log_sum_exp]
}

/// Every variant of every guise of a device that runs this case in a way of its own.
pub fn variants(guises: &[Gpu], case: &Case) -> Vec<(Gpu, Variant, String)> {
    let mut seen = HashSet::new();
    let mut variants = Vec::new();
    for guise in guises {
        let capabilities = *guise.context().capabilities();
        for variant in case.config(None).variants(&capabilities) {
            let plan = case
                .config(Some(variant))
                .plan(&capabilities, case.shape(), true)
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

/// Compares every variant of every guise of the device with the reference.
pub fn check(case: Case) {
    if let Some(gpu) = gpu() {
        check_on(&guises(gpu), case);
    }
}

/// Compares every variant of `guises` with the reference.
pub fn check_on(guises: &[Gpu], case: Case) {
    let inputs = case.inputs();
    let problem = case.problem();
    let [query, key, value] = inputs.each_ref().map(|x| convert::<f64>(x));
    let truth = reference::attention(&problem, &query, &key, &value);
    let yardstick = reference::attention(&problem, &inputs[0], &inputs[1], &inputs[2]);
    let rows = [problem.batch, problem.num_heads, problem.q_len];
    let shape = [rows.as_slice(), &[problem.value_dim]].concat();
    for (guise, variant, tile) in variants(guises, &case) {
        let [output, log_sum_exp] = run(&guise, &case, variant, &inputs);
        for (name, shape, got, truth, yardstick) in [
            (
                "output",
                &shape[..],
                &output,
                &truth.output,
                &yardstick.output,
            ),
            (
                "log_sum_exp",
                &rows,
                &log_sum_exp,
                &truth.log_sum_exp,
                &yardstick.log_sum_exp,
            ),
        ] {
            if let Err(difference) = compare(name, shape, got, truth, yardstick, Tolerance::FORWARD)
            {
                panic!(
                    "{difference}\n{variant}, {tile}\n{case:?}\n{}",
                    guise.describe()
                );
            }
        }
    }
}
