//! What is masked reaches nothing, be it NaN; what is not masked reaches all that attend it.

use crate::common::attention::{Case, SMALL, check_inputs, run, variants};
use crate::common::{bits, gpu, guises};
use gatefold::reference::{attention as reference, convert};
use gatefold::{Axes, Causal, ElementType};

#[test]
fn masked_values_do_not_reach_the_result_as_nan() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        q_len: 40,
        kv_len: 70,
        causal: Causal::TopLeft,
        batch: 1,
        ..SMALL
    };
    let clean = case.inputs();
    let problem = case.problem(&clean);
    let mut inputs = clean.clone();
    // key 20 of every head: rows before 20 may not attend it; and the keys that no row attends
    for head in 0..problem.num_kv_heads {
        for (tensor, dim) in [
            (&mut inputs.key, problem.head_dim),
            (&mut inputs.value, problem.value_dim),
        ] {
            let head = &mut tensor[head * problem.kv_len * dim..][..problem.kv_len * dim];
            head[20 * dim..][..dim].fill(f32::NAN);
            head[40 * dim..].fill(f32::INFINITY);
        }
    }
    for (guise, variant, tile) in variants(&guises(gpu), &case) {
        let [got, _] = run(&guise, &case, variant, &inputs);
        let [want, _] = run(&guise, &case, variant, &clean);
        for (row, (got, want)) in got.chunks(16).zip(want.chunks(16)).enumerate() {
            if row % problem.q_len < 20 {
                assert_eq!(bits(got), bits(want), "row {row}: {variant}, {tile}");
            }
        }
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
        bias: Some((
            ElementType::F32,
            Axes {
                batch: false,
                head: false,
                query: false,
                key: true,
            },
        )),
        sinks: true,
        ..SMALL
    };
    for poison in [f32::NAN, 1e30, f32::INFINITY] {
        let mut inputs = case.inputs();
        let kv_len = case.kv_len as usize;
        for j in (0..kv_len).step_by(3) {
            inputs.mask[j] = false;
            inputs.mask[kv_len + j] = false;
        }
        inputs.bias[1] = -1e30;
        inputs.bias[4] = f32::NEG_INFINITY;
        let clean = inputs.clone();
        let heads = case.num_kv_heads as usize;
        for (at, lengths) in [(0, 40), (1, 53)] {
            for h in 0..heads {
                for j in 0..kv_len {
                    if inputs.mask[at * kv_len + j] && j < lengths && j != 1 && j != 4 {
                        continue;
                    }
                    let row = (at * heads + h) * kv_len + j;
                    inputs.key[row * 16..][..16].fill(poison);
                    inputs.value[row * 16..][..16].fill(poison);
                }
            }
        }
        for (guise, variant, tile) in variants(&guises(gpu), &case) {
            let got = run(&guise, &case, variant, &inputs);
            let want = run(&guise, &case, variant, &clean);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), bits(want), "{poison}: {variant}, {tile}");
            }
        }
        check_inputs(&guises(gpu)[..1], case, &clean);
    }
}

/// As in PyTorch; a comparison, a maximum or a clamp must not lose it.
#[test]
fn nan_reaches_all_that_attend_it() {
    let Some(gpu) = gpu() else { return };
    let plain = Case {
        causal: Causal::TopLeft,
        ..SMALL
    };
    let capped = Case {
        softcap: Some(5.0),
        ..SMALL
    };
    let decode = Case { q_len: 1, ..SMALL };
    let merged = Case {
        kv_len: 1100,
        ..decode
    };
    for case in [plain, capped, decode, merged] {
        let clean = case.inputs();
        let mut inputs = clean.clone();
        inputs.key[7 * case.head_dim as usize + 3] = f32::NAN;
        let problem = case.problem(&inputs);
        let [query, key, value] = [&inputs.query, &inputs.key, &inputs.value].map(|x| convert(x));
        let truth: reference::Output<f64> = reference::attention(&problem, &query, &key, &value);
        for (guise, variant, tile) in variants(&guises(gpu), &case) {
            let [got, _] = run(&guise, &case, variant, &inputs);
            let [want, _] = run(&guise, &case, variant, &clean);
            for (at, (got, truth)) in got.iter().zip(&truth.output).enumerate() {
                let as_expected = match truth.is_nan() {
                    true => got.is_nan(),
                    false => got.to_bits() == want[at].to_bits(),
                };
                assert!(as_expected, "element {at} is {got}; {variant}, {tile}");
            }
            assert!(got.iter().any(|x| x.is_nan()));
        }
    }
}
