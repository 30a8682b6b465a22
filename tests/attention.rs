//! Attention on the device against the f64 reference, in every variant and guise of the device.

mod common;

use common::attention::{
    AXES, Case, Inputs, MANY, SMALL, check, check_inputs, check_on, check_option, large_gpu, run,
    variants,
};
use common::attention_options::{COMBINATIONS, OPTIONS};
use common::{Output, Random, bits, gpu, guises};
use gatefold::reference::{attention as reference, convert};
use gatefold::{
    Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape, Causal, Gpu,
    Layout,
};
use gatefold::{AttentionMerge, AttentionMergeBuffers, Axes, ElementType, Error, Variant};

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
        head_dim: 80,
        value_dim: 80,
        causal: Causal::TopLeft,
        ..SMALL
    });
}

#[test]
fn one_key_is_its_value() {
    check(Case {
        q_len: 3,
        kv_len: 1,
        ..SMALL
    });
}

#[test]
fn single_query() {
    check(Case {
        q_len: 1,
        kv_len: 100,
        num_heads: 4,
        num_kv_heads: 1,
        ..SMALL
    });
}

#[test]
fn tiles_less_one_exact_and_more_one() {
    for len in [31, 32, 33, 63, 64, 65] {
        check(Case {
            q_len: len,
            kv_len: 96 - len,
            batch: 1,
            num_heads: 2,
            num_kv_heads: 2,
            ..SMALL
        });
    }
}

#[test]
fn many_queries_get_larger_tiles() {
    let Some(gpu) = gpu() else { return };
    let gpu = large_gpu(gpu);
    let tiles = variants(std::slice::from_ref(&gpu), &MANY);
    let larger = |tile: &&(Gpu, Variant, String)| tile.2.contains("128 queries");
    assert!(tiles.iter().any(|tile| larger(&tile)), "{tiles:?}");
    check_on(&[gpu], MANY);
}

#[test]
fn bottom_right_with_fewer_queries() {
    check(Case {
        q_len: 20,
        kv_len: 75,
        causal: Causal::BottomRight,
        ..SMALL
    });
}

#[test]
fn rows_without_keys_are_zero() {
    check(Case {
        q_len: 75,
        kv_len: 20,
        causal: Causal::BottomRight,
        ..SMALL
    });
    check(Case {
        causal: Causal::Offset(-9),
        ..SMALL
    });
    check(Case {
        causal: Causal::Offset(-1000),
        ..SMALL
    });
}

#[test]
fn offsets_reach_beyond_the_keys() {
    check(Case {
        causal: Causal::Offset(7),
        ..SMALL
    });
    check(Case {
        causal: Causal::Offset(i32::MAX),
        ..SMALL
    });
}

#[test]
fn head_dims_odd_prime_and_large() {
    for (head_dim, value_dim) in [
        (1, 1),
        (7, 13),
        (33, 5),
        (64, 64),
        (97, 40),
        (128, 128),
        (256, 256),
    ] {
        let causal = if head_dim % 2 == 1 {
            Causal::TopLeft
        } else {
            Causal::No
        };
        check(Case {
            batch: 1,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim,
            value_dim,
            causal,
            ..SMALL
        });
    }
}

#[test]
fn tokens_before_heads() {
    let layout = Layout::Bshd;
    check(Case {
        layout,
        num_heads: 4,
        num_kv_heads: 2,
        causal: Causal::TopLeft,
        ..SMALL
    });
}

#[test]
fn large_scores_stay_finite() {
    check(Case {
        scale: Some(700.0),
        ..SMALL
    });
    check(Case {
        scale: Some(-0.01),
        ..SMALL
    });
}

#[test]
fn no_keys_and_no_queries() {
    check(Case { kv_len: 0, ..SMALL });
    check(Case { q_len: 0, ..SMALL });
    check(Case { batch: 0, ..SMALL });
}

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
fn heads_are_cut_where_a_binding_ends() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        num_heads: 6,
        num_kv_heads: 3,
        ..SMALL
    };
    let inputs = case.inputs();
    let whole = run(gpu, &case, Variant::Portable, &inputs);
    for storage_binding_size in [20_000, 9_000] {
        let capabilities = gatefold::Capabilities {
            storage_binding_size,
            ..*gpu.context().capabilities()
        };
        let cut = gpu.with_capabilities(capabilities, Default::default());
        let plan = case
            .config(None)
            .plan(&capabilities, case.shape(), case.given())
            .unwrap();
        assert!(plan.dispatches.len() > 1, "{}", plan.dispatches.len());
        assert_eq!(
            run(&cut, &case, Variant::Portable, &inputs).map(|x| bits(&x)),
            whole.clone().map(|x| bits(&x))
        );
    }
    let capabilities = gatefold::Capabilities {
        storage_binding_size: 1024,
        ..*gpu.context().capabilities()
    };
    let error = case
        .config(None)
        .plan(&capabilities, case.shape(), case.given())
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                limit: "max_storage_buffer_binding_size",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn packed_query_key_value_in_one_buffer_with_the_output() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        layout: Layout::Bshd,
        ..SMALL
    };
    let Case {
        batch,
        num_heads,
        head_dim,
        ..
    } = case;
    let len = 64;
    // [batch, len, 3, num_heads, head_dim], and the output behind it in the same buffer
    let width = num_heads * head_dim;
    let mut random = Random::new(7);
    let packed = random.normals((batch * len * 3 * width) as usize, 1.0);
    let out_len = (batch * len * width) as usize;
    let mut contents = packed.clone();
    contents.resize(packed.len() + out_len, f32::NAN);
    let pick = |part: u32| -> Vec<f32> {
        let row = |b: u32, h: u32, t: u32| {
            let first = ((((b * len + t) * 3 + part) * num_heads + h) * head_dim) as usize;
            packed[first..first + head_dim as usize].to_vec()
        };
        (0..batch * num_heads * len)
            .flat_map(|i| row(i / len / num_heads, i / len % num_heads, i % len))
            .collect()
    };
    let case = Case {
        q_len: len,
        kv_len: len,
        layout: Layout::Bhsd,
        causal: Causal::TopLeft,
        ..case
    };
    let inputs = Inputs {
        query: pick(0),
        key: pick(1),
        value: pick(2),
        ..case.inputs()
    };
    let [want, _] = run(gpu, &case, Variant::Portable, &inputs);

    let strides = Layout::Strides {
        batch: len * 3 * width,
        head: head_dim,
        token: 3 * width,
    };
    let shape = AttentionShape {
        query_layout: strides,
        key_layout: strides,
        value_layout: strides,
        ..case.shape()
    };
    let buffer = gpu.upload("packed", &contents).unwrap();
    let op = Attention::new(gpu.context(), case.config(Some(Variant::Portable))).unwrap();
    // a slice of 48 floats further on starts unaligned on most devices: bind the whole and say so
    let part = 4 * u64::from(width);
    let buffers = AttentionBuffers::new(
        buffer.slice(..4 * packed.len() as u64),
        buffer.slice(part..4 * packed.len() as u64),
        buffer.slice(2 * part..4 * packed.len() as u64),
        buffer.slice(4 * packed.len() as u64..),
    );
    let alignment = u64::from(gpu.device().limits().min_storage_buffer_offset_alignment);
    match op.bind(shape, buffers) {
        Ok(bound) => {
            gpu.run(|pass| {
                bound.record(pass);
                Ok(())
            })
            .unwrap();
            let all: Vec<f32> = gpu.download(&buffer).unwrap();
            assert_eq!(bits(&all[packed.len()..]), bits(&want));
        }
        Err(error) => assert!(part % alignment != 0, "{error}"),
    }
}

#[test]
fn each_option() {
    OPTIONS.into_iter().for_each(check_option);
}

#[test]
fn options_together() {
    COMBINATIONS.into_iter().for_each(check_option);
}

#[test]
fn bias_and_mask_broadcast_along_any_axis() {
    for axes in AXES {
        check_option(Case {
            bias: Some((ElementType::F32, axes)),
            ..SMALL
        });
        check_option(Case {
            mask: Some(axes),
            kv_len: 70,
            ..SMALL
        });
    }
}

#[test]
fn few_queries_against_many_keys() {
    let decode = Case {
        batch: 1,
        num_heads: 6,
        num_kv_heads: 2,
        q_len: 1,
        kv_len: 1100,
        ..SMALL
    };
    check(decode);
    check_option(Case {
        q_len: 3,
        causal: Causal::BottomRight,
        mask: Some(Axes::ALL),
        bias: Some((ElementType::F32, AXES[1])),
        alibi: true,
        sinks: true,
        kv_lengths: Some(&[900]),
        layout: Layout::Bshd,
        ..decode
    });
    // splits that no key is in
    check_option(Case {
        window_left: Some(50),
        kv_lengths: Some(&[400]),
        causal: Causal::BottomRight,
        ..decode
    });
    check_option(Case {
        kv_lengths: Some(&[0]),
        ..decode
    });
}

#[test]
fn two_parts_merge_into_the_whole() {
    let Some(gpu) = gpu() else { return };
    let whole = Case {
        kv_len: 90,
        ..SMALL
    };
    let inputs = whole.inputs();
    // the keys of every head in two parts
    let part = |range: std::ops::Range<usize>| {
        let cut = |x: &[f32]| -> Vec<f32> {
            let heads = x.chunks(90 * 16);
            let part = heads.flat_map(|head| &head[range.start * 16..range.end * 16]);
            part.copied().collect()
        };
        let inputs = Inputs {
            key: cut(&inputs.key),
            value: cut(&inputs.value),
            ..inputs.clone()
        };
        let case = Case {
            kv_len: range.len() as u32,
            ..whole
        };
        run(gpu, &case, Variant::Portable, &inputs)
    };
    let parts = [part(0..37), part(37..90)];
    let rows = parts[0][1].len();
    let uploaded = parts.map(|part| part.map(|x| gpu.upload("part", &x).unwrap()));
    let (output, log_sum_exp) = (Output::new(gpu, rows * 16), Output::new(gpu, rows));
    let merge = AttentionMerge::new(gpu.context(), 16).unwrap();
    let [first, second] = uploaded
        .each_ref()
        .map(|[output, sums]| (output.slice(..), sums.slice(..)));
    let buffers = AttentionMergeBuffers {
        first,
        second,
        output: output.buffer.slice(..),
        log_sum_exp: log_sum_exp.buffer.slice(..),
    };
    let bound = merge.bind(rows as u64, buffers).unwrap();
    gpu.run(|pass| {
        bound.record(pass);
        Ok(())
    })
    .unwrap();
    let want = run(gpu, &whole, Variant::Portable, &inputs);
    for (got, want) in [output.read(gpu), log_sum_exp.read(gpu)].iter().zip(&want) {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }
}

#[test]
fn halves_with_odd_rows() {
    for element in [ElementType::F16, ElementType::Bf16] {
        check_option(Case {
            element,
            head_dim: 13,
            value_dim: 9,
            ..SMALL
        });
    }
}

#[test]
fn head_dims_up_to_512() {
    for (head_dim, value_dim) in [(512, 512), (288, 320), (40, 512)] {
        check_option(Case {
            num_heads: 1,
            num_kv_heads: 1,
            batch: 1,
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
    for case in [plain, capped, decode] {
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

#[test]
fn mistakes_are_named() {
    let Some(gpu) = gpu() else { return };
    let op = Attention::new(gpu.context(), SMALL.config(None)).unwrap();
    let shape = SMALL.shape();
    let plan_error = |shape| {
        op.plan(shape, AttentionGiven::default())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        plan_error(AttentionShape {
            num_kv_heads: 2,
            ..shape
        }),
        "num_kv_heads is 2, expected a divisor of num_heads, 3"
    );
    let [query, key, value, output] =
        [3552, 5088, 5088, 3552].map(|len| gpu.zeros("tensor", 4 * len).unwrap());
    let bind = |buffers| op.bind(shape, buffers).unwrap_err().to_string();
    assert_eq!(
        bind(AttentionBuffers::new(
            query.slice(..),
            key.slice(..256),
            value.slice(..),
            output.slice(..),
        )),
        "key: the slice has 256 bytes, the shape needs 20352"
    );
    assert_eq!(
        bind(AttentionBuffers::new(
            query.slice(..),
            key.slice(..),
            value.slice(..),
            query.slice(..),
        )),
        "output is written and overlaps query in the same buffer"
    );
    let error = Attention::new(
        gpu.context(),
        AttentionConfig {
            head_dim: 513,
            ..Default::default()
        },
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "head_dim is 513, expected 1 to 512"
    );
}
