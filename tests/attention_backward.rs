//! Gradients of attention on the device against the f64 reference, in every variant and guise of the device.

mod common;

use common::attention::{AXES, Case, Inputs, MANY, SMALL, Uploaded, large_gpu};
use common::attention_backward::{Judge, check_inputs, check_these, run, variants};
use common::{Output, bits, gpu, guises, shared_guises};
use gatefold::{
    Attention, AttentionBackwardBuffers, AttentionBackwardGiven, AttentionBuffers, AttentionShape,
};
use gatefold::{Axes, Capabilities, Causal, Checks, ElementType, Gpu, Layout, Packed, Variant};

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

#[test]
fn what_is_not_finite_reaches_the_pairs_that_are_not_masked() {
    for mask in [None, Some(AXES[0])] {
        let case = Case {
            causal: Causal::TopLeft,
            element: ElementType::F16,
            mask,
            ..SMALL
        };
        let mut clean = case.inputs();
        // query 20 of batch row 0 and head 0 attends keys up to 20 but for every third
        let attends = |j: usize| j <= 20 && (mask.is_none() || j % 3 != 1);
        if mask.is_some() {
            let kv_len = case.kv_len as usize;
            (0..kv_len).for_each(|j| clean.mask[20 * kv_len + j] = attends(j));
        }
        let row = 20 * 16;
        let mut query = clean.clone();
        query.query[row + 3] = f32::NAN;
        let mut grad_output = clean.clone();
        grad_output.grad_output[row + 3] = f32::INFINITY;
        for (guise, variant, tile) in all_forms(&case) {
            let at = format!("{mask:?}, {variant}, {tile}");
            for inputs in [&query, &grad_output] {
                let [query, key, value, ..] = run(&guise, &case, variant, inputs);
                for (i, x) in query.chunks(16).enumerate() {
                    assert_eq!(x.iter().all(|x| x.is_finite()), i != 20, "query {i}, {at}");
                }
                for (name, gradient) in [("key", key), ("value", value)] {
                    for (j, x) in gradient.chunks(16).enumerate() {
                        let spoiled = j < case.kv_len as usize && attends(j);
                        let finite = x.iter().all(|x| x.is_finite());
                        assert_eq!(finite, !spoiled, "{name} {j}, {at}");
                    }
                }
            }
        }
    }
}

/// Whether query i of a head may attend key j: as blocks of 64 x 64 that allow no pair, all, or some. No query attends
/// keys 64 .. 128, no key is attended by queries 64 .. 128.
fn in_blocks(b: usize, h: usize, i: usize, j: usize) -> bool {
    let (row, column) = (i / 64, j / 64);
    match (row + 2 * column + h + 2 * b) % 3 {
        _ if row == 1 || column == 1 => false,
        0 => !(7 * i + 13 * j).is_multiple_of(5),
        kind => kind == 1,
    }
}

/// The inputs of a case whose mask is of blocks; one that has a row for all queries is that of the first.
fn of_blocks(case: &Case) -> Inputs {
    let mut inputs = case.inputs();
    let p = case.problem(&inputs);
    let [_, h, q, k] = p.mask.unwrap().shape;
    let mask = (0..inputs.mask.len())
        .map(|at| in_blocks(at / k / q / h, at / k / q % h, at / k % q, at % k))
        .collect();
    inputs.mask = mask;
    inputs
}

/// What no pair needs, filled with `poison`: keys and values that no query attends, queries that attend no key.
fn poisoned(case: &Case, clean: &Inputs, poison: f32) -> Inputs {
    let mut inputs = clean.clone();
    let p = case.problem(clean);
    let group = p.num_heads / p.num_kv_heads;
    let mut attended = vec![false; p.batch * p.num_kv_heads * p.kv_len];
    for row in 0..p.batch * p.num_heads * p.q_len {
        let (b, h, i) = (
            row / p.q_len / p.num_heads,
            row / p.q_len % p.num_heads,
            row % p.q_len,
        );
        let mut attends = false;
        for j in 0..p.kv_len {
            if p.mask.unwrap().get(b, h, i, j) {
                attends = true;
                attended[(b * p.num_kv_heads + h / group) * p.kv_len + j] = true;
            }
        }
        if !attends {
            inputs.query[row * p.head_dim..][..p.head_dim].fill(poison);
        }
    }
    assert!(attended.contains(&false));
    for (row, _) in attended.iter().enumerate().filter(|(_, seen)| !**seen) {
        inputs.key[row * p.head_dim..][..p.head_dim].fill(poison);
        inputs.value[row * p.value_dim..][..p.value_dim].fill(poison);
    }
    inputs
}

const BLOCKS: Case = Case {
    num_heads: 4,
    num_kv_heads: 2,
    q_len: 200,
    kv_len: 230,
    element: ElementType::F16,
    mask: Some(Axes::ALL),
    ..SMALL
};

/// Every form in all guises of the device, which compile a kernel once.
fn all_forms(case: &Case) -> Vec<(Gpu, Variant, String)> {
    shared_guises().map_or(vec![], |guises| variants(guises, case))
}

#[test]
fn blocks_of_a_mask_are_skipped() {
    let clean = of_blocks(&BLOCKS);
    check_these(all_forms(&BLOCKS), BLOCKS, &clean);
    for poison in [f32::NAN, f32::INFINITY] {
        let inputs = poisoned(&BLOCKS, &clean, poison);
        for (guise, variant, tile) in all_forms(&BLOCKS) {
            let got = run(&guise, &BLOCKS, variant, &inputs);
            let want = run(&guise, &BLOCKS, variant, &clean);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), bits(want), "{poison}: {variant}, {tile}");
            }
            // keys that nobody attends, and queries that attend nothing, whatever the gradients' memory had
            let zero =
                |gradient: &[f32], first: usize| gradient[first * 16..][..64 * 16] == [0.0; 1024];
            for head in 0..4 {
                assert!(zero(&got[1], head * 230 + 64) && zero(&got[2], head * 230 + 64));
            }
            assert!(
                (0..8).all(|head| zero(&got[0], head * 200 + 64)),
                "{variant}, {tile}"
            );
        }
    }
}

#[test]
fn blocks_of_a_mask_on_a_large_gpu() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        batch: 8,
        num_heads: 16,
        num_kv_heads: 16,
        element: ElementType::F32,
        ..BLOCKS
    };
    let guise = large_gpu(gpu);
    check_inputs(&[guise], case, &of_blocks(&case));
}

#[test]
fn blocks_of_a_mask_along_any_axis() {
    let mut everything = BLOCKS.inputs();
    everything.mask.fill(true);
    check_these(all_forms(&BLOCKS), BLOCKS, &everything);
    for axes in AXES {
        let case = Case {
            mask: Some(axes),
            // the queries of a tile of keys begin anywhere in a block
            causal: Causal::BottomRight,
            window_left: Some(130),
            kv_lengths: Some(&[190, 230]),
            // its kernel has a tile of its own
            bias: Some((ElementType::F32, AXES[5])),
            ..BLOCKS
        };
        check_these(all_forms(&case), case, &of_blocks(&case));
    }
}

#[test]
fn blocks_of_a_mask_in_chunks() {
    let Some(gpu) = gpu() else { return };
    // one batch row at a time, and one head of keys
    for (limit, axes) in [(40 << 10, AXES[2]), (20 << 10, AXES[5])] {
        let capabilities = Capabilities {
            storage_binding_size: limit,
            ..*gpu.context().capabilities()
        };
        let case = Case {
            q_len: 130,
            kv_len: 150,
            mask: Some(axes),
            ..BLOCKS
        };
        let given = AttentionBackwardGiven::default();
        let plan = case
            .config(None)
            .plan_backward(&capabilities, case.shape(), given)
            .unwrap();
        let names = plan.dispatches.iter().map(|dispatch| dispatch.kernel.name);
        let chunks = names.filter(|name| *name == "attention_backward_statistics");
        assert!(chunks.count() > 1);
        let guise = gpu.with_capabilities(capabilities, Checks::Trusted);
        check_inputs(&[guise], case, &of_blocks(&case));
    }
}

#[test]
fn blocks_of_a_mask_of_packed_sequences() {
    let Some(gpu) = gpu() else { return };
    let (q_lens, kv_lens) = ([130, 64, 7], [100, 150, 70]);
    let starts = |lens: [u32; 3]| [0, lens[0], lens[0] + lens[1], lens.iter().sum()];
    let (q_starts, kv_starts) = (starts(q_lens), starts(kv_lens));
    let (q, k) = (q_starts[3] as usize, kv_starts[3] as usize);
    // tensors [heads, tokens, 16], as of one long sequence
    let long = Case {
        batch: 1,
        q_len: q_starts[3],
        kv_len: kv_starts[3],
        element: ElementType::F32,
        mask: None,
        ..BLOCKS
    };
    let inputs = long.inputs();
    let uploaded = Uploaded::new(gpu, &long, &inputs);
    let (q_len, kv_len) = (130, 150);
    let at = |index: usize| {
        (
            index / kv_len / q_len,
            index / kv_len % q_len,
            index % kv_len,
        )
    };
    let mask: Vec<u8> = (0..3 * q_len * kv_len)
        .map(at)
        .map(|(b, i, j)| in_blocks(b, 0, i, j).into())
        .collect();
    let mask = gpu.upload("mask", &mask).unwrap();
    let cu_seqlens = [q_starts, kv_starts].map(|x| gpu.upload("cu_seqlens", &x).unwrap());
    let grad_output = gpu.upload("grad_output", &inputs.grad_output).unwrap();
    let case = Case {
        batch: 3,
        q_len: q_len as u32,
        kv_len: kv_len as u32,
        mask: Some(AXES[2]),
        ..long
    };
    let shape = AttentionShape {
        packed: Some(Packed {
            query_tokens: q_starts[3],
            key_tokens: kv_starts[3],
        }),
        ..case.shape()
    };
    for guise in shared_guises().unwrap_or_default() {
        for variant in case.config(None).variants(guise.context().capabilities()) {
            let op = Attention::new(guise.context(), case.config(Some(variant))).unwrap();
            let output = Output::new(gpu, 4 * q * 16);
            let log_sum_exp = Output::new(gpu, 4 * q);
            let gradients = [4 * q * 16, 2 * k * 16, 2 * k * 16].map(|len| Output::new(gpu, len));
            let scratch = [
                op.scratch_size(shape).unwrap(),
                op.backward_scratch_size(shape).unwrap(),
            ]
            .map(|size| Output::new(gpu, size as usize / 4));
            let buffers = |scratch| AttentionBuffers {
                mask: Some(mask.slice(..)),
                cu_seqlens: Some((cu_seqlens[0].slice(..), cu_seqlens[1].slice(..))),
                ..uploaded
                    .buffers(&long, output.slice(), scratch)
                    .log_sum_exp(log_sum_exp.slice())
            };
            let forward = op.bind(shape, buffers(scratch[0].slice())).unwrap();
            let backward = AttentionBackwardBuffers {
                forward: buffers(scratch[1].slice()),
                grad_output: grad_output.slice(..),
                grad_query: gradients[0].slice(),
                grad_key: gradients[1].slice(),
                grad_value: gradients[2].slice(),
                grad_bias: None,
                grad_sinks: None,
            };
            let backward = op.bind_backward(shape, backward).unwrap();
            guise
                .run(|pass| {
                    forward.record(pass);
                    backward.record(pass);
                    Ok(())
                })
                .unwrap();
            let gradients = gradients.each_ref().map(|gradient| gradient.read(gpu));
            for b in 0..3 {
                let part = |x: &[f32], heads: usize, tokens: usize, starts: [u32; 4]| -> Vec<f32> {
                    let rows = starts[b] as usize..starts[b + 1] as usize;
                    let head = |h: usize| &x[(h * tokens + rows.start) * 16..][..rows.len() * 16];
                    (0..heads).flat_map(|h| head(h).to_vec()).collect()
                };
                let queries = |x: &[f32]| part(x, 4, q, q_starts);
                let keys = |x: &[f32]| part(x, 2, k, kv_starts);
                let own = Case {
                    batch: 1,
                    q_len: q_lens[b],
                    kv_len: kv_lens[b],
                    ..case
                };
                let (own_q, own_k) = (q_lens[b] as usize, kv_lens[b] as usize);
                let own_inputs = Inputs {
                    query: queries(&inputs.query),
                    key: keys(&inputs.key),
                    value: keys(&inputs.value),
                    grad_output: queries(&inputs.grad_output),
                    mask: (0..own_q * own_k)
                        .map(|at| in_blocks(b, 0, at / own_k, at % own_k))
                        .collect(),
                    ..inputs.clone()
                };
                let [query, key, value] = &gradients;
                let got = [queries(query), keys(key), keys(value), vec![], vec![]];
                let judge = Judge::new(&own, &own_inputs);
                if let Err(difference) = judge.check(got, variant) {
                    panic!(
                        "sequence {b}: {difference}\n{variant}, {}",
                        guise.describe()
                    );
                }
            }
        }
    }
}
