//! Attention by the device's matrix units against the f64 reference; nothing where it has none.

mod common;

use common::attention::{Case, SMALL, check_variant, run, variants};
use common::attention_options::{COMBINATIONS, OPTIONS};
use common::{bits, gpu};
use gatefold::{Causal, ElementType, Variant};

/// With tensors of f16.
fn check_cooperative(case: Case) {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        element: ElementType::F16,
        // where the largest weights are dropped, those that are left must be within f16
        magnitude: if case.dropout.is_some() {
            0.5
        } else {
            case.magnitude
        },
        ..case
    };
    check_variant(gpu, Variant::Cooperative, case);
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
