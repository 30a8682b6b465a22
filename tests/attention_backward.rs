//! Gradients of attention on the device against the f64 reference, in every variant and guise of the device.

mod common;

use common::attention::{AXES, Case, MANY, SMALL, large_gpu};
use common::attention_backward::{check_inputs, run, variants};
use common::{bits, gpu, guises};
use gatefold::{Axes, Causal, ElementType, Layout};

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
