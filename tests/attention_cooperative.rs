//! Attention by the device's matrix units against the f64 reference; nothing where it has none.

mod common;

use common::attention::{Case, SMALL, check_variant, run, variants};
use common::attention_backward as backward;
use common::attention_options::{COMBINATIONS, OPTIONS};
use common::{bits, gpu};
use gatefold::{Causal, ElementType, Variant};

/// With tensors of f16.
fn halves(case: Case) -> Case {
    Case {
        element: ElementType::F16,
        // where the largest weights are dropped, those that are left must be within f16
        magnitude: if case.dropout.is_some() {
            0.5
        } else {
            case.magnitude
        },
        ..case
    }
}

fn check_cooperative(case: Case) {
    if let Some(gpu) = gpu() {
        check_variant(gpu, Variant::Cooperative, halves(case));
    }
}

fn check_gradients(case: Case) {
    if let Some(gpu) = gpu() {
        let case = halves(case);
        backward::check_variant(gpu, Variant::Cooperative, case, &case.inputs());
    }
}

#[test]
fn every_option() {
    OPTIONS.into_iter().for_each(check_cooperative);
    COMBINATIONS.into_iter().for_each(check_cooperative);
}

#[test]
fn any_shape() {
    for (head_dim, value_dim) in [(1, 3), (64, 64), (80, 40), (128, 128), (192, 64)] {
        check_cooperative(Case {
            batch: 1,
            num_heads: 2,
            num_kv_heads: 1,
            q_len: 67,
            kv_len: 130,
            head_dim,
            value_dim,
            causal: Causal::TopLeft,
            ..SMALL
        });
    }
    check_cooperative(Case {
        batch: 1,
        q_len: 2,
        kv_len: 1100,
        ..SMALL
    });
}

#[test]
fn what_is_masked_is_not_seen() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        element: ElementType::F16,
        kv_lengths: Some(&[40, 53]),
        ..SMALL
    };
    let clean = case.inputs();
    let mut poisoned = clean.clone();
    let rows = (case.num_kv_heads * case.kv_len) as usize;
    for j in 0..rows {
        if j % case.kv_len as usize >= 40 {
            poisoned.key[j * 16..][..16].fill(f32::NAN);
            poisoned.value[j * 16..][..16].fill(f32::INFINITY);
        }
    }
    for (guise, variant, tile) in variants(std::slice::from_ref(gpu), &case) {
        let got = run(&guise, &case, variant, &poisoned);
        let want = run(&guise, &case, variant, &clean);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(bits(got), bits(want), "{variant}, {tile}");
        }
        // and a row sees what it may attend
        let mut seen = clean.clone();
        seen.value[0] = f32::NAN;
        let [output, _] = run(&guise, &case, variant, &seen);
        assert!(output[0].is_nan() && output[1].is_finite(), "{variant}");
    }
}

#[test]
fn gradients_with_every_option() {
    OPTIONS.into_iter().for_each(check_gradients);
    COMBINATIONS.into_iter().for_each(check_gradients);
}

#[test]
fn gradients_of_any_shape() {
    for (head_dim, value_dim) in [(1, 3), (40, 24), (64, 64), (80, 40), (33, 128)] {
        check_gradients(Case {
            batch: 1,
            num_heads: 2,
            num_kv_heads: 1,
            q_len: 67,
            kv_len: 130,
            head_dim,
            value_dim,
            causal: Causal::TopLeft,
            ..SMALL
        });
    }
}

#[test]
fn gradients_of_any_magnitude() {
    let Some(gpu) = gpu() else { return };
    let case = halves(Case {
        q_len: 130,
        kv_len: 150,
        ..SMALL
    });
    let clean = case.inputs();
    for magnitude in [1e-12, 1e-3, 1e3, 1e12] {
        let mut inputs = clean.clone();
        // a block of queries is 1e6 times the one before it
        for (at, x) in inputs.grad_output.iter_mut().enumerate() {
            let larger = at / 16 % 130 >= 100;
            *x *= magnitude * if larger { 1e6 } else { 1.0 };
        }
        backward::check_variant(gpu, Variant::Cooperative, case, &inputs);
    }
    for magnitude in [1e-3, 1e3] {
        let mut inputs = clean.clone();
        let rounded = |x: &mut f32| *x = ElementType::F16.round(*x * magnitude);
        inputs.value.iter_mut().for_each(rounded);
        backward::check_variant(gpu, Variant::Cooperative, case, &inputs);
    }
}

#[test]
fn gradients_do_not_see_what_is_masked() {
    let Some(gpu) = gpu() else { return };
    let case = halves(Case {
        kv_lengths: Some(&[40, 53]),
        causal: Causal::TopLeft,
        ..SMALL
    });
    let clean = case.inputs();
    let keys = (case.num_kv_heads * case.kv_len) as usize;
    let mut poisoned = clean.clone();
    for j in 0..keys {
        let j_of_head = j % case.kv_len as usize;
        // no query attends keys past the last of them, no other sees what follows
        if j_of_head >= 37 {
            poisoned.key[j * 16..][..16].fill(f32::NAN);
            poisoned.value[j * 16..][..16].fill(f32::INFINITY);
        }
    }
    let variant = Variant::Cooperative;
    for (guise, other, tile) in backward::variants(std::slice::from_ref(gpu), &case) {
        if other != variant {
            continue;
        }
        let got = backward::run(&guise, &case, variant, &poisoned);
        let want = backward::run(&guise, &case, variant, &clean);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(bits(got), bits(want), "{tile}");
        }
        // key 20 of the first head is seen by queries 20 and on
        let mut seen = clean.clone();
        seen.value[20 * 16] = f32::NAN;
        let [query, key, ..] = backward::run(&guise, &case, variant, &seen);
        assert!(query[19 * 16].is_finite() && !query[20 * 16].is_finite());
        assert!(!key[20 * 16].is_finite());
        // and query 20 sees keys up to 20
        let mut seen = clean.clone();
        seen.grad_output[20 * 16] = f32::INFINITY;
        let [query, key, value, ..] = backward::run(&guise, &case, variant, &seen);
        assert!(query[19 * 16].is_finite() && !query[20 * 16].is_finite());
        for gradient in [key, value] {
            assert!(gradient[21 * 16].is_finite() && !gradient[20 * 16].is_finite());
        }
    }
}
