//! A case of attention, and how it is run and judged in every variant.

use std::collections::HashSet;

use gatefold::reference::attention::{Broadcast, Dropout};
use gatefold::reference::compare::{Tolerance, compare};
use gatefold::reference::{attention as reference, convert};
use gatefold::{Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape};
use gatefold::{Axes, Capabilities, Causal, Checks, ElementType, Gpu, Layout, Variant};

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
    pub element: ElementType,
    pub causal: Causal,
    pub window_left: Option<u32>,
    pub window_right: Option<u32>,
    pub scale: Option<f32>,
    pub softcap: Option<f32>,
    pub dropout: Option<f32>,
    pub bias: Option<(ElementType, Axes)>,
    pub mask: Option<Axes>,
    pub alibi: bool,
    pub sinks: bool,
    pub kv_lengths: Option<&'static [u32]>,
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
    element: ElementType::F32,
    causal: Causal::No,
    window_left: None,
    window_right: None,
    scale: None,
    softcap: None,
    dropout: None,
    bias: None,
    mask: None,
    alibi: false,
    sinks: false,
    kv_lengths: None,
    layout: Layout::Bhsd,
    magnitude: 1.5,
};

/// Of `[batch, heads, q_len, kv_len]`.
pub const AXES: [Axes; 6] = {
    let all = Axes::ALL;
    [
        all,
        Axes {
            batch: false,
            ..all
        },
        Axes { head: false, ..all },
        Axes {
            query: false,
            ..all
        },
        Axes { key: false, ..all },
        Axes {
            batch: false,
            head: false,
            ..all
        },
    ]
};

pub const SEED: u64 = 0x0123_4567_89ab_cdef;

/// All that a case reads, as f32 that its storage types hold exactly.
#[derive(Clone)]
pub struct Inputs {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub grad_output: Vec<f32>,
    pub bias: Vec<f32>,
    pub mask: Vec<bool>,
    pub alibi_slopes: Vec<f32>,
    pub sinks: Vec<f32>,
}

impl Case {
    pub fn config(&self, variant: Option<Variant>) -> AttentionConfig {
        AttentionConfig {
            head_dim: self.head_dim,
            value_dim: Some(self.value_dim),
            element: self.element,
            scale: self.scale,
            causal: self.causal,
            window_left: self.window_left,
            window_right: self.window_right,
            softcap: self.softcap,
            dropout: self.dropout,
            bias: self.bias.map(|(element, _)| element),
            mask: self.mask.is_some(),
            alibi: self.alibi,
            sinks: self.sinks,
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
        let shape = AttentionShape::new(batch, num_heads, num_kv_heads, q_len, kv_len);
        AttentionShape {
            bias_axes: self.bias.map_or(Axes::ALL, |(_, axes)| axes),
            mask_axes: self.mask.unwrap_or(Axes::ALL),
            seed: SEED,
            ..shape.with_layout(self.layout)
        }
    }

    pub fn given(&self) -> AttentionGiven {
        AttentionGiven {
            log_sum_exp: true,
            kv_lengths: self.kv_lengths.is_some(),
        }
    }

    fn broadcast(&self, axes: Axes) -> [usize; 4] {
        let [b, h, q, k] = [self.batch, self.num_heads, self.q_len, self.kv_len];
        [
            (axes.batch, b),
            (axes.head, h),
            (axes.query, q),
            (axes.key, k),
        ]
        .map(|(has, len)| if has { len as usize } else { 1 })
    }

    pub fn problem<'a>(&self, inputs: &'a Inputs) -> reference::Problem<'a> {
        let [
            batch,
            num_heads,
            num_kv_heads,
            q_len,
            kv_len,
            head_dim,
            value_dim,
        ] = [
            self.batch,
            self.num_heads,
            self.num_kv_heads,
            self.q_len,
            self.kv_len,
            self.head_dim,
            self.value_dim,
        ]
        .map(|x| x as usize);
        let plain = reference::Problem::plain(
            batch,
            num_heads,
            num_kv_heads,
            q_len,
            kv_len,
            head_dim,
            value_dim,
        );
        reference::Problem {
            scale: self.scale.map_or(plain.scale, f64::from),
            softcap: self.softcap.map(f64::from),
            causal: self.causal,
            window_left: self.window_left,
            window_right: self.window_right,
            dropout: self.dropout.map(|probability| Dropout {
                probability,
                seed: SEED,
            }),
            bias: self.bias.map(|(_, axes)| Broadcast {
                shape: self.broadcast(axes),
                values: &inputs.bias,
            }),
            mask: self.mask.map(|axes| Broadcast {
                shape: self.broadcast(axes),
                values: &inputs.mask,
            }),
            kv_lengths: self.kv_lengths,
            alibi_slopes: self.alibi.then_some(&inputs.alibi_slopes),
            sinks: self.sinks.then_some(&inputs.sinks),
            ..plain
        }
    }

    pub fn inputs(&self) -> Inputs {
        let mut random = Random::new(0x5eed ^ u64::from(self.q_len * 1009 + self.kv_len));
        let len = |dims: &[u32]| dims.iter().map(|&x| x as usize).product::<usize>();
        let stored = |values: Vec<f32>, element: ElementType| -> Vec<f32> {
            values.iter().map(|&x| element.round(x)).collect()
        };
        let rows = [self.batch, self.num_heads, self.q_len];
        let keys = [self.batch, self.num_kv_heads, self.kv_len];
        let query = random.normals(len(&rows) * self.head_dim as usize, self.magnitude);
        let key = random.normals(len(&keys) * self.head_dim as usize, self.magnitude);
        // not around 0: the mean of a row's only element may vanish, and its relative error with it
        let value = random
            .normals(len(&keys) * self.value_dim as usize, 1.0)
            .iter()
            .map(|v| v + 0.7)
            .collect();
        let grad_output = random.normals(len(&rows) * self.value_dim as usize, 1.0);
        let (bias_element, bias_axes) = self.bias.unwrap_or((ElementType::F32, Axes::ALL));
        let bias_len = self
            .bias
            .map_or(0, |_| self.broadcast(bias_axes).iter().product());
        // now and then a bias that masks
        let bias = random
            .normals(bias_len, 1.5)
            .into_iter()
            .map(|x| match random.uniform() {
                u if u < 0.06 => f32::NEG_INFINITY,
                u if u < 0.1 && bias_element != ElementType::F16 => -2e30,
                _ => x,
            })
            .collect();
        let mask = self
            .mask
            .map_or(vec![], |axes| self.random_mask(axes, &mut random));
        Inputs {
            query: stored(query, self.element),
            key: stored(key, self.element),
            value: stored(value, self.element),
            grad_output,
            bias: stored(bias, bias_element),
            mask,
            alibi_slopes: (0..self.num_heads)
                .map(|h| 0.5f32.powi(h as i32 + 1))
                .collect(),
            sinks: random.normals(self.num_heads as usize, 1.0),
        }
    }

    /// With rows and blocks that allow nothing, blocks that allow all, and scattered ones.
    fn random_mask(&self, axes: Axes, random: &mut Random) -> Vec<bool> {
        let [b, h, q, k] = self.broadcast(axes);
        (0..b * h * q * k)
            .map(|at| {
                let (i, j) = (at / k % q, at % k);
                let block = (i / 32 * 7 + j / 32 * 5 + at / k / q) % 4;
                match (block, i % 11) {
                    (_, 5) if q > 1 => false,
                    (0, _) if k > 32 => false,
                    (1, _) => true,
                    _ => random.uniform() < 0.6,
                }
            })
            .collect()
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

/// The tensors of a case on the device.
pub struct Uploaded {
    pub query: wgpu::Buffer,
    pub key: wgpu::Buffer,
    pub value: wgpu::Buffer,
    bias: wgpu::Buffer,
    mask: wgpu::Buffer,
    kv_lengths: wgpu::Buffer,
    alibi_slopes: wgpu::Buffer,
    sinks: wgpu::Buffer,
}

impl Uploaded {
    pub fn new(gpu: &Gpu, case: &Case, inputs: &Inputs) -> Self {
        let p = case.problem(inputs);
        let q = [p.batch, p.num_heads, p.q_len, p.head_dim];
        let kv = |dim| [p.batch, p.num_kv_heads, p.kv_len, dim];
        let tensor = |values: &[f32], dims| {
            let words = case
                .element
                .words(&reorder(values, case.layout, dims, false));
            gpu.upload("input", &words).unwrap()
        };
        let bias_element = case.bias.map_or(ElementType::F32, |(element, _)| element);
        let mut mask: Vec<u8> = inputs.mask.iter().map(|&x| u8::from(x)).collect();
        mask.resize(mask.len().next_multiple_of(4), 0);
        Self {
            query: tensor(&inputs.query, q),
            key: tensor(&inputs.key, kv(p.head_dim)),
            value: tensor(&inputs.value, kv(p.value_dim)),
            bias: gpu
                .upload("bias", &bias_element.words(&inputs.bias))
                .unwrap(),
            mask: gpu.upload("mask", &mask).unwrap(),
            kv_lengths: gpu
                .upload("kv_lengths", case.kv_lengths.unwrap_or(&[0]))
                .unwrap(),
            alibi_slopes: gpu.upload("alibi_slopes", &inputs.alibi_slopes).unwrap(),
            sinks: gpu.upload("sinks", &inputs.sinks).unwrap(),
        }
    }

    /// Those that the configuration of the case has.
    pub fn buffers<'a>(
        &'a self,
        case: &Case,
        output: wgpu::BufferSlice<'a>,
        scratch: wgpu::BufferSlice<'a>,
    ) -> AttentionBuffers<'a> {
        AttentionBuffers {
            bias: case.bias.map(|_| self.bias.slice(..)),
            mask: case.mask.map(|_| self.mask.slice(..)),
            kv_lengths: case.kv_lengths.map(|_| self.kv_lengths.slice(..)),
            alibi_slopes: case.alibi.then(|| self.alibi_slopes.slice(..)),
            sinks: case.sinks.then(|| self.sinks.slice(..)),
            scratch: Some(scratch),
            ..AttentionBuffers::new(
                self.query.slice(..),
                self.key.slice(..),
                self.value.slice(..),
                output,
            )
        }
    }
}

/// Runs the case twice; gives back output and log_sum_exp of contiguous tensors.
pub fn run(gpu: &Gpu, case: &Case, variant: Variant, inputs: &Inputs) -> [Vec<f32>; 2] {
    let p = case.problem(inputs);
    let rows = p.batch * p.num_heads * p.q_len;
    let uploaded = Uploaded::new(gpu, case, inputs);
    let output = Output::new(gpu, rows * p.value_dim);
    let log_sum_exp = Output::new(gpu, rows);
    let op = Attention::new(gpu.context(), case.config(Some(variant))).unwrap();
    let scratch = Output::new(gpu, op.scratch_size(case.shape()).unwrap() as usize / 4);
    let buffers = uploaded
        .buffers(case, output.buffer.slice(..), scratch.buffer.slice(..))
        .log_sum_exp(log_sum_exp.buffer.slice(..));
    let bound = op.bind(case.shape(), buffers).unwrap();
    let once = || {
        for output in [&output, &log_sum_exp, &scratch] {
            output.poison(gpu);
        }
        gpu.run(|pass| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
        scratch.read(gpu);
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
    let out = [p.batch, p.num_heads, p.q_len, p.value_dim];
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
                .plan(&capabilities, case.shape(), case.given())
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

/// Compares two forms with the reference that differ in everything: as a GPU without subgroups, and as this CPU.
/// For the many options, each of which is a kernel to compile.
pub fn check_option(case: Case) {
    if let Some(gpu) = gpu() {
        let all = guises(gpu);
        check_on(&[all[2].clone(), all[3].clone()], case);
    }
}

/// As many rows as fill a large GPU, which gets larger tiles for them.
pub const MANY: Case = Case {
    batch: 8,
    num_heads: 16,
    num_kv_heads: 16,
    q_len: 129,
    kv_len: 70,
    head_dim: 7,
    value_dim: 12,
    causal: Causal::BottomRight,
    ..SMALL
};

/// A GPU with as much workgroup memory as the larger tiles want: on a CPU that is memory like any other, whatever its
/// limit says.
pub fn large_gpu(gpu: &Gpu) -> Gpu {
    let capabilities = Capabilities {
        cpu: false,
        workgroup_memory: 48 << 10,
        ..*gpu.context().capabilities()
    };
    gpu.with_capabilities(capabilities, Checks::Trusted)
}

/// Compares every variant of `guises` with the reference.
pub fn check_on(guises: &[Gpu], case: Case) {
    check_inputs(guises, case, &case.inputs());
}

/// The same with inputs of the test's own.
pub fn check_inputs(guises: &[Gpu], case: Case, inputs: &Inputs) {
    check_these(variants(guises, &case), case, inputs);
}

/// Compares one variant with the reference, if the device can run it.
pub fn check_variant(gpu: &Gpu, variant: Variant, case: Case) {
    let mut these = variants(std::slice::from_ref(gpu), &case);
    these.retain(|(_, other, _)| *other == variant);
    check_these(these, case, &case.inputs());
}

fn check_these(variants: Vec<(Gpu, Variant, String)>, case: Case, inputs: &Inputs) {
    let problem = case.problem(inputs);
    let [query, key, value] = [&inputs.query, &inputs.key, &inputs.value];
    let exact = |x: &[f32]| convert::<f64>(x);
    let truth = reference::attention(&problem, &exact(query), &exact(key), &exact(value));
    let yardstick = reference::attention(&problem, query, key, value);
    let rows = [problem.batch, problem.num_heads, problem.q_len];
    let shape = [rows.as_slice(), &[problem.value_dim]].concat();
    for (guise, variant, tile) in variants {
        let tolerance = Tolerance::FORWARD.of(variant);
        let [output, log_sum_exp] = run(&guise, &case, variant, inputs);
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
            if let Err(difference) = compare(name, shape, got, truth, yardstick, tolerance) {
                panic!(
                    "{difference}\n{variant}, {tile}\n{case:?}\n{}",
                    guise.describe()
                );
            }
        }
    }
}
