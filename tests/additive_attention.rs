//! Additive attention on the device against the f64 reference, forward and backward, in every variant and guise
//! of the device.

mod common;

use common::additive_attention::{
    Case, Inputs, RESULTS, Run, SMALL, all_guises, check, check_on, run, variants,
};
use common::{bits, gpu, guises};
use gatefold::reference::additive_attention as reference;
use gatefold::{AdditiveAttention, AdditiveAttentionBuffers, AdditiveAttentionConfig};
use gatefold::{AdditiveAttentionMask, Capabilities, ElementType, Error, Variant};

#[test]
fn plain() {
    check(SMALL);
}

#[test]
fn at_the_floor_with_checks() {
    let Some(gpu) = gpu() else { return };
    check_on(&guises(gpu)[..1], SMALL, &SMALL.inputs());
}

#[test]
fn one_of_each() {
    check(Case {
        batch: 1,
        q_len: 1,
        kv_len: 1,
        dim: 1,
        value_dim: 1,
        ..SMALL
    });
}

#[test]
fn tiles_less_one_exact_and_more_one() {
    for len in [31, 32, 33, 63, 64, 65] {
        check(Case {
            batch: 1,
            q_len: len,
            kv_len: 97 - len,
            ..SMALL
        });
    }
}

#[test]
fn dims_odd_prime_and_large() {
    for (dim, value_dim) in [(1, 33), (7, 13), (16, 16), (64, 32), (100, 300), (1024, 40)] {
        check(Case {
            batch: 1,
            q_len: 9,
            kv_len: 35,
            dim,
            value_dim,
            ..SMALL
        });
    }
}

#[test]
fn single_query_many_keys() {
    check(Case {
        batch: 3,
        q_len: 1,
        kv_len: 300,
        ..SMALL
    });
}

const fn mask(batch: bool, query: bool, key: bool) -> Option<AdditiveAttentionMask> {
    Some(AdditiveAttentionMask { batch, query, key })
}

#[test]
fn masks_of_every_broadcast() {
    for axes in 0..8 {
        check(Case {
            q_len: 13,
            kv_len: 21,
            dim: 9,
            value_dim: 5,
            mask: mask(axes & 1 != 0, axes & 2 != 0, axes & 4 != 0),
            ..SMALL
        });
    }
}

#[test]
fn lengths_cut_the_keys() {
    check(Case {
        batch: 4,
        kv_lengths: Some(&[53, 0, 17, 32]),
        ..SMALL
    });
    check(Case {
        batch: 2,
        value_dim: 70,
        kv_lengths: Some(&[0, 40]),
        mask: mask(true, true, true),
        ..SMALL
    });
}

#[test]
fn lengths_out_of_range_are_brought_into_it() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        kv_lengths: Some(&[-3, 1000]),
        ..SMALL
    };
    let mut inputs = case.inputs();
    let got = run(gpu, &case, None, &inputs);
    inputs.kv_lengths = vec![0, 53];
    let want = run(gpu, &case, None, &inputs);
    assert_eq!(got.map(|x| bits(&x)), want.map(|x| bits(&x)));
}

/// The mask of a whole row, and of a whole key.
fn masked_out(case: &Case, query: usize, keys: &[usize]) -> Inputs {
    let mut inputs = case.inputs();
    let (q_len, kv_len) = (case.q_len as usize, case.kv_len as usize);
    for (at, allowed) in inputs.mask.iter_mut().enumerate() {
        let (i, j) = (at / kv_len % q_len, at % kv_len);
        *allowed &= i != query && !keys.contains(&j);
    }
    inputs
}

#[test]
fn rows_without_keys_are_zero() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        mask: mask(true, true, true),
        ..SMALL
    };
    let inputs = masked_out(&case, 4, &[]);
    check_on(all_guises(), case, &inputs);
    let [output, log_sum_exp, weights, grad_query, ..] = run(gpu, &case, None, &inputs);
    assert_eq!(bits(&log_sum_exp)[4], 0xff80_0000);
    assert_eq!(bits(&output[4 * 17..5 * 17]), [0; 17]);
    assert_eq!(bits(&weights[4 * 53..5 * 53]), [0; 53]);
    assert!(grad_query[4 * 20..5 * 20].iter().all(|&x| x == 0.0));
}

#[test]
fn masked_keys_and_values_do_not_reach_any_result() {
    let masked = Case {
        value_dim: 70,
        mask: mask(true, true, true),
        ..SMALL
    };
    let lengths = Case {
        kv_lengths: Some(&[11, 42]),
        ..SMALL
    };
    for case in [masked, lengths] {
        let clean = masked_out(&case, 36, &[0, 7, 52]);
        let problem = clean.problem(&case);
        let reachable =
            |b: usize, j: usize| (0..problem.q_len).any(|i| problem.is_allowed(b, i, j));
        for poison in [f32::NAN, 1e30, f32::INFINITY] {
            let mut inputs = case.inputs();
            inputs.mask.clone_from(&clean.mask);
            for (b, j) in (0..2).flat_map(|b| (0..53).map(move |j| (b, j))) {
                if !reachable(b, j) {
                    inputs.key[(b * 53 + j) * problem.dim..][..problem.dim].fill(poison);
                    let value = &mut inputs.value[(b * 53 + j) * problem.value_dim..];
                    value[..problem.value_dim].fill(poison);
                }
            }
            assert_ne!(bits(&inputs.key), bits(&clean.key));
            // what is masked has the same result, 0, in the reference with clean keys
            for (guise, variant, tile) in variants(all_guises(), &case) {
                let got = run(&guise, &case, Some(variant), &inputs);
                let want = run(&guise, &case, Some(variant), &clean);
                for (name, (got, want)) in RESULTS.iter().zip(got.iter().zip(&want)) {
                    let scale = want.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
                    for (got, want) in got.iter().zip(want) {
                        // a large key makes its tile take the direct form, which rounds in other places
                        let same = got == want || (got - want).abs() <= 1e-5 * scale;
                        assert!(same, "{name}: {got} {want}, {poison}; {variant}, {tile}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_value_masked_for_some_queries_reaches_only_the_others() {
    let case = Case {
        mask: mask(true, true, true),
        ..SMALL
    };
    let mut clean = case.inputs();
    // a large key has its tile, that of the NaN, take the direct form
    clean.key[31 * 20] = 40.0;
    let mut inputs = clean.clone();
    for b in 0..2 {
        inputs.value[(b * 53 + 20) * 17..][..17].fill(f32::NAN);
        inputs.key[(b * 53 + 30) * 20..][..20].fill(f32::NAN);
    }
    let problem = clean.problem(&case);
    for (guise, variant, tile) in variants(all_guises(), &case) {
        let got = run(&guise, &case, Some(variant), &inputs);
        let want = run(&guise, &case, Some(variant), &clean);
        for row in 0..2 * 37 {
            let (b, i) = (row / 37, row % 37);
            let [by_value, by_key] = [20, 30].map(|j| problem.is_allowed(b, i, j));
            for (tensor, width) in [(0, 17), (3, 20)] {
                let range = row * width..(row + 1) * width;
                let (got, want) = (&got[tensor][range.clone()], &want[tensor][range]);
                let name = RESULTS[tensor];
                if by_value || by_key {
                    assert!(
                        got.iter().any(|x| x.is_nan()),
                        "{name} {row}: {variant}, {tile}"
                    );
                } else {
                    assert_eq!(bits(got), bits(want), "{name} {row}: {variant}, {tile}");
                }
            }
        }
    }
}

#[test]
fn large_opposite_terms() {
    let case = Case {
        batch: 1,
        q_len: 40,
        kv_len: 50,
        dim: 24,
        ..SMALL
    };
    // one chunk with a few large terms, one at the bound, one with none
    for large in [9.99, 10.01, 30.0, 80.0, 1e4] {
        let mut inputs = case.inputs();
        let opposite = |x: &mut f32, sign: f32| *x = sign * (large + 0.1 * *x);
        for i in [3, 17, 39] {
            let row = &mut inputs.query[i * 24..][..24];
            row[..8].iter_mut().for_each(|x| opposite(x, 1.0));
            row[10] = large;
        }
        for j in [0, 18, 49] {
            let row = &mut inputs.key[j * 24..][..24];
            row[..8].iter_mut().for_each(|x| opposite(x, -1.0));
            row[10] = 1.0 - large;
        }
        check_on(all_guises(), case, &inputs);
    }
}

#[test]
fn saturated_terms_of_both_signs() {
    for magnitude in [0.01, 6.0, 20.0, 200.0] {
        check(Case {
            batch: 1,
            magnitude,
            ..SMALL
        });
    }
}

#[test]
fn a_v_of_one_sign_costs_no_digits() {
    check(Case {
        batch: 1,
        q_len: 9,
        kv_len: 35,
        dim: 512,
        v_bias: 1.0,
        ..SMALL
    });
}

#[test]
fn halves() {
    for element in [ElementType::F16, ElementType::Bf16] {
        check(Case { element, ..SMALL });
        // rows that begin within a word
        check(Case {
            element,
            q_len: 7,
            kv_len: 9,
            dim: 5,
            value_dim: 3,
            mask: mask(true, false, true),
            kv_lengths: Some(&[9, 4]),
            ..SMALL
        });
    }
}

#[test]
fn no_keys_no_queries_and_no_batch() {
    check(Case { kv_len: 0, ..SMALL });
    check(Case { q_len: 0, ..SMALL });
    check(Case { batch: 0, ..SMALL });
}

#[test]
fn the_batch_is_cut_where_a_binding_ends() {
    let Some(gpu) = gpu() else { return };
    for (element, mask) in [
        (ElementType::F32, mask(true, true, true)),
        (ElementType::F16, None),
    ] {
        let case = Case {
            batch: 5,
            kv_lengths: Some(&[53, 3, 20, 0, 31]),
            element,
            mask,
            ..SMALL
        };
        let inputs = case.inputs();
        let all = *gpu.context().capabilities();
        let cut = |storage_binding_size| {
            let capabilities = Capabilities {
                storage_binding_size,
                ..all
            };
            gpu.with_capabilities(capabilities, Default::default())
        };
        let whole = run(gpu, &case, None, &inputs);
        let small = cut(20_000);
        let plan = case
            .config(None)
            .plan(small.context().capabilities(), case.shape(), true, true);
        assert!(plan.unwrap().dispatches.len() > 4);
        let got = run(&small, &case, None, &inputs);
        for (i, (got, want)) in got.iter().zip(&whole).enumerate() {
            if RESULTS[i] == "grad_v" {
                // summed in other blocks
                let off = got
                    .iter()
                    .zip(want)
                    .any(|(a, b)| (a - b).abs() > 1e-5 * b.abs().max(1.0));
                assert!(!off, "{got:?} {want:?}");
            } else {
                assert_eq!(bits(got), bits(want), "{}", RESULTS[i]);
            }
        }
        let error =
            case.config(None)
                .plan(cut(1024).context().capabilities(), case.shape(), true, true);
        assert!(matches!(error, Err(Error::Limit { .. })), "{error:?}");
    }
}

#[test]
fn forward_alone_and_without_options() {
    let Some(gpu) = gpu() else { return };
    let inputs = SMALL.inputs();
    let all = run(gpu, &SMALL, None, &inputs);
    let op = AdditiveAttention::new(gpu.context(), SMALL.config(None)).unwrap();
    let given = [&inputs.query, &inputs.key, &inputs.value, &inputs.v];
    let [q, k, value, v] = given.map(|x| gpu.upload("input", x).unwrap());
    let output = common::Output::new(gpu, all[0].len());
    let buffers = AdditiveAttentionBuffers::new(
        q.slice(..),
        k.slice(..),
        value.slice(..),
        v.slice(..),
        output.buffer.slice(..),
    );
    gpu.run(|pass| op.record(pass, SMALL.shape(), buffers))
        .unwrap();
    assert_eq!(bits(&output.read(gpu)), bits(&all[0]));
    assert_eq!(op.scratch_size(SMALL.shape()), Ok(0));

    let weights = AdditiveAttentionBuffers {
        weights: Some(output.buffer.slice(..)),
        ..buffers
    };
    let message = |buffers, shape| op.bind(shape, buffers).unwrap_err().to_string();
    assert_eq!(
        message(weights, SMALL.shape()),
        "log_sum_exp: is needed for the weights and missing"
    );
    let shape = SMALL.shape().with_kv_lengths();
    assert_eq!(message(buffers, shape), "kv_lengths: is needed and missing");
    let buffers = buffers.mask(v.slice(..));
    assert_eq!(message(buffers, SMALL.shape()), "mask: the shape has none");
}

#[test]
fn mistakes_are_named() {
    let floor = Capabilities::floor();
    let plan = |dim, value_dim, q_len, variant| {
        let config = AdditiveAttentionConfig {
            dim,
            value_dim: Some(value_dim),
            variant,
            ..Default::default()
        };
        let shape = Case { q_len, ..SMALL }.shape();
        let both = [
            config.plan(&floor, shape, true, false),
            config.plan_backward(&floor, shape),
        ];
        both.map(|plan| plan.unwrap_err().to_string())
    };
    let [forward, backward] = plan(0, 1, 1, None);
    assert_eq!(forward, "dim is 0, expected 1 to less than 2^24");
    assert_eq!(forward, backward);
    assert_eq!(
        plan(1, 0, 1, None)[0],
        "value_dim is 0, expected 1 to less than 2^24"
    );
    assert_eq!(
        plan(1, 1, 1 << 30, None)[1],
        "q_len is 1073741824, expected less than 2^30"
    );
    let subgroup = plan(1, 1, 1, Some(Variant::Subgroup));
    assert!(
        subgroup[0].contains("subgroup variant of additive attention"),
        "{subgroup:?}"
    );
}

#[test]
fn huge_shapes_are_refused_without_overflow() {
    let floor = Capabilities::floor();
    let lengths = [0, 1, 1 << 29, (1 << 30) - 1];
    for batch in [0, 1, u32::MAX] {
        for q_len in lengths {
            for kv_len in lengths {
                for dim in [1, (1 << 24) - 1] {
                    let config = AdditiveAttentionConfig {
                        dim,
                        ..Default::default()
                    };
                    for mask in [None, mask(true, true, true)] {
                        let shape = Case {
                            batch,
                            q_len,
                            kv_len,
                            mask,
                            ..SMALL
                        }
                        .shape();
                        let _ = config.plan(&floor, shape, true, true);
                        let _ = config.plan_backward(&floor, shape);
                    }
                }
            }
        }
    }
}

/// The reference's gradients are the differences of its outputs.
#[test]
fn gradients_of_the_reference_are_differences() {
    let case = Case {
        q_len: 4,
        kv_len: 5,
        dim: 3,
        value_dim: 2,
        mask: mask(true, true, true),
        kv_lengths: Some(&[5, 3]),
        ..SMALL
    };
    let inputs = case.inputs();
    let problem = inputs.problem(&case);
    let exact = [&inputs.query, &inputs.key, &inputs.value, &inputs.v]
        .map(|x| gatefold::reference::convert::<f64>(x));
    let grad_output = gatefold::reference::convert::<f64>(&inputs.grad_output);
    let of = |x: &[Vec<f64>; 4]| {
        let [query, key, value, v] = x.each_ref().map(|x| x.as_slice().to_vec());
        let inputs = reference::Inputs {
            query: &query,
            key: &key,
            value: &value,
            v: &v,
        };
        let output = reference::additive_attention(&problem, inputs).output;
        output
            .iter()
            .zip(&grad_output)
            .map(|(o, g)| o * g)
            .sum::<f64>()
    };
    let given = reference::Inputs {
        query: &exact[0],
        key: &exact[1],
        value: &exact[2],
        v: &exact[3],
    };
    let (grad, _) = reference::additive_attention_backward(&problem, given, &grad_output);
    let grads = [&grad.query, &grad.key, &grad.value, &grad.v];
    for (tensor, grad) in grads.iter().enumerate() {
        assert!(grad.iter().any(|&g| g.abs() > 1e-2));
        for (i, &grad) in grad.iter().enumerate() {
            let moved = |by: f64| {
                let mut moved = exact.clone();
                moved[tensor][i] += by;
                of(&moved)
            };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(
                (difference - grad).abs() < 1e-8,
                "{tensor} {i}: {difference} {grad}"
            );
        }
    }
}

/// Where a tile's rows end within a workgroup, nothing is written behind them.
#[test]
fn outputs_in_one_buffer_with_the_inputs() {
    let Some(gpu) = gpu() else { return };
    let case = Case { q_len: 33, ..SMALL };
    let inputs = case.inputs();
    let want = run(gpu, &case, None, &inputs);
    let alone = Run::new(gpu, &case, None, &inputs).once(gpu);
    assert_eq!(bits(&alone[0]), bits(&want[0]));
    // query, key, value, v and the output, each at a multiple of 256 bytes
    let mut words: Vec<f32> = Vec::new();
    let mut starts = Vec::new();
    for x in [
        &inputs.query,
        &inputs.key,
        &inputs.value,
        &inputs.v,
        &want[0],
    ] {
        words.resize(words.len().next_multiple_of(64), 0.0);
        starts.push(4 * words.len() as u64);
        words.extend(x);
    }
    words.extend([7.0; 3]);
    let end = starts[4] as usize / 4;
    words[end..end + want[0].len()].fill(f32::NAN);
    let buffer = gpu.upload("all", &words).unwrap();
    let slice = |i: usize| match starts.get(i + 1) {
        Some(&end) => buffer.slice(starts[i]..end),
        None => buffer.slice(starts[i]..),
    };
    let op = AdditiveAttention::new(gpu.context(), case.config(None)).unwrap();
    let buffers = AdditiveAttentionBuffers::new(slice(0), slice(1), slice(2), slice(3), slice(4));
    gpu.run(|pass| op.record(pass, case.shape(), buffers))
        .unwrap();
    let all: Vec<f32> = gpu.download(&buffer).unwrap();
    assert_eq!(bits(&all[end..end + want[0].len()]), bits(&want[0]));
    assert_eq!(all[all.len() - 3..], [7.0; 3]);
}
