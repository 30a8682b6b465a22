//! Gradients of attention on the device against the f64 reference, in every variant and guise of the device.

mod common;

use common::attention::{AXES, Case, Inputs, MANY, SMALL, Uploaded, large_gpu, reorder};
use common::{Output, bits, gpu, guises};
use gatefold::reference::attention as reference;
use gatefold::reference::compare::{Tolerance, compare_with};
use gatefold::reference::convert;
use gatefold::{Attention, AttentionBackwardBuffers, AttentionBackwardGiven};
use gatefold::{Axes, Causal, ElementType, Gpu, Layout, Variant};
use std::collections::HashSet;

/// Gradients of query, key, value, bias and sinks, the last two empty where the case has none.
type Gradients = [Vec<f32>; 5];

/// Runs forward and backward twice.
fn run(gpu: &Gpu, case: &Case, variant: Variant, inputs: &Inputs) -> Gradients {
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
fn variants(guises: &[Gpu], case: &Case) -> Vec<(Gpu, Variant, String)> {
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

fn check(case: Case) {
    let Some(gpu) = gpu() else { return };
    check_inputs(&guises(gpu), case, &case.inputs());
}

/// In two forms that differ in everything, as a GPU and as this CPU: every option is a set of kernels to compile.
fn check_option(case: Case) {
    let Some(gpu) = gpu() else { return };
    let all = guises(gpu);
    check_inputs(&[all[1].clone(), all[3].clone()], case, &case.inputs());
}

fn check_inputs(guises: &[Gpu], case: Case, inputs: &Inputs) {
    let p = case.problem(inputs);
    let [query, key, value] = [&inputs.query, &inputs.key, &inputs.value];
    let exact = [query, key, value, &inputs.grad_output].map(|x| convert::<f64>(x));
    let [q, k, v, g] = &exact;
    let truth = reference::backward(&p, q, k, v, g);
    let magnitude = reference::backward_magnitude(&p, q, k, v, g);
    let yardstick = reference::backward(&p, query, key, value, &inputs.grad_output);
    let bias_shape = p.bias.map_or([0; 4], |bias| bias.shape);
    for (guise, variant, tile) in variants(guises, &case) {
        let [query, key, value, bias, sinks] = run(&guise, &case, variant, inputs);
        let keys = [p.batch * p.num_kv_heads, p.kv_len];
        let judged = [
            (
                "grad_query",
                vec![p.batch * p.num_heads, p.q_len, p.head_dim],
                query,
                &truth.query,
                &magnitude.query,
                &yardstick.query,
            ),
            (
                "grad_key",
                vec![keys[0], keys[1], p.head_dim],
                key,
                &truth.key,
                &magnitude.key,
                &yardstick.key,
            ),
            (
                "grad_value",
                vec![keys[0], keys[1], p.value_dim],
                value,
                &truth.value,
                &magnitude.value,
                &yardstick.value,
            ),
            (
                "grad_bias",
                bias_shape.to_vec(),
                bias,
                &truth.bias,
                &magnitude.bias,
                &yardstick.bias,
            ),
            (
                "grad_sinks",
                vec![truth.sinks.len()],
                sinks,
                &truth.sinks,
                &magnitude.sinks,
                &yardstick.sinks,
            ),
        ];
        for (name, shape, got, truth, magnitude, yardstick) in judged {
            let tolerance = Tolerance::GRADIENT.of(variant);
            let result = compare_with(name, &shape, &got, truth, magnitude, yardstick, tolerance);
            if let Err(difference) = result {
                panic!(
                    "{difference}\n{variant}, {tile}\n{case:?}\n{}",
                    guise.describe()
                );
            }
        }
    }
}

#[test]
fn many_rows_get_larger_tiles() {
    let Some(gpu) = gpu() else { return };
    check_inputs(&[large_gpu(gpu)], MANY, &MANY.inputs());
}

#[test]
fn plain() {
    check(SMALL);
}

#[test]
fn grouped_heads_causal_ragged_tiles() {
    check(Case {
        num_heads: 6,
        num_kv_heads: 2,
        q_len: 65,
        kv_len: 129,
        head_dim: 20,
        value_dim: 12,
        causal: Causal::TopLeft,
        ..SMALL
    });
}

#[test]
fn more_queries_than_keys_and_rows_without_keys() {
    check(Case {
        q_len: 75,
        kv_len: 20,
        causal: Causal::BottomRight,
        ..SMALL
    });
}

#[test]
fn each_option() {
    for case in [
        Case {
            window_left: Some(9),
            window_right: Some(4),
            ..SMALL
        },
        Case {
            window_left: Some(20),
            causal: Causal::BottomRight,
            ..SMALL
        },
        Case {
            softcap: Some(2.0),
            ..SMALL
        },
        Case {
            dropout: Some(0.3),
            ..SMALL
        },
        Case {
            bias: Some((ElementType::F32, Axes::ALL)),
            ..SMALL
        },
        Case {
            mask: Some(Axes::ALL),
            ..SMALL
        },
        Case {
            alibi: true,
            ..SMALL
        },
        Case {
            sinks: true,
            ..SMALL
        },
        Case {
            kv_lengths: Some(&[17, 53]),
            ..SMALL
        },
        Case {
            kv_lengths: Some(&[0, 99]),
            causal: Causal::BottomRight,
            ..SMALL
        },
    ] {
        check_option(case);
    }
}

#[test]
fn the_gradient_of_a_bias_is_summed_over_the_axes_that_it_lacks() {
    for axes in AXES {
        check_option(Case {
            bias: Some((ElementType::F32, axes)),
            q_len: 70,
            kv_len: 40,
            ..SMALL
        });
    }
}

#[test]
fn options_together() {
    for case in [
        Case {
            num_heads: 6,
            num_kv_heads: 2,
            value_dim: 24,
            causal: Causal::BottomRight,
            window_left: Some(20),
            softcap: Some(3.0),
            dropout: Some(0.2),
            bias: Some((ElementType::F16, AXES[1])),
            mask: Some(AXES[2]),
            alibi: true,
            sinks: true,
            kv_lengths: Some(&[31, 53]),
            layout: Layout::Bshd,
            ..SMALL
        },
        Case {
            head_dim: 13,
            value_dim: 7,
            element: ElementType::F16,
            bias: Some((ElementType::Bf16, AXES[5])),
            dropout: Some(0.5),
            ..SMALL
        },
    ] {
        check_option(case);
    }
}

#[test]
fn head_dims() {
    for (head_dim, value_dim) in [(1, 1), (64, 64), (128, 96), (256, 256), (512, 320)] {
        check_option(Case {
            batch: 1,
            num_heads: 2,
            num_kv_heads: 1,
            q_len: 21,
            head_dim,
            value_dim,
            causal: Causal::TopLeft,
            ..SMALL
        });
    }
}

#[test]
fn what_is_masked_may_be_anything() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        kv_lengths: Some(&[40, 53]),
        mask: Some(Axes {
            head: false,
            query: false,
            ..Axes::ALL
        }),
        sinks: true,
        ..SMALL
    };
    let kv_len = case.kv_len as usize;
    let mut clean = case.inputs();
    for j in (0..kv_len).step_by(3) {
        clean.mask[j] = false;
        clean.mask[kv_len + j] = false;
    }
    for poison in [f32::NAN, 1e30, f32::INFINITY] {
        let mut inputs = clean.clone();
        let heads = case.num_kv_heads as usize;
        for (at, length) in [(0, 40), (1, 53)] {
            for row in 0..heads * kv_len {
                let (h, j) = (row / kv_len, row % kv_len);
                if inputs.mask[at * kv_len + j] && j < length {
                    continue;
                }
                let row = (at * heads + h) * kv_len + j;
                inputs.key[row * 16..][..16].fill(poison);
                inputs.value[row * 16..][..16].fill(poison);
            }
        }
        for (guise, variant, tile) in variants(&guises(gpu)[1..4], &case) {
            let got = run(&guise, &case, variant, &inputs);
            let want = run(&guise, &case, variant, &clean);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), bits(want), "{poison}: {variant}, {tile}");
            }
        }
    }
}
