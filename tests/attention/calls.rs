//! How calls are cut, bound, merged and refused.

use crate::common::attention::{Case, Inputs, SMALL, run};
use crate::common::{Output, Random, bits, gpu};
use gatefold::{
    Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionMerge,
    AttentionMergeBuffers, AttentionShape, Causal, Error, Layout, Variant,
};

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
