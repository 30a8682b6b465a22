//! Inputs for `bench` and `verify`.

use super::{Attention, INPUTS};
use crate::ops::random::Random;
use crate::tensors::{Tensor, Tensors};

pub fn tensors(problem: &Attention, seed: u64) -> Tensors {
    let mut random = Random::new(seed);
    let (shape, config) = (&problem.shape, &problem.config);
    let [query, key, value, output] = problem.dims();
    let mut tensors = Tensors::new();
    // values not around 0: the mean of a row's only element may vanish, and its relative error with it
    let inputs = [(query, 0.0, 1.5), (key, 0.0, 1.0), (value, 0.7, 1.0)];
    for (name, (shape, mean, deviation)) in INPUTS.iter().zip(inputs) {
        let values = random.normals(shape.iter().product(), mean, deviation);
        let values = values
            .into_iter()
            .map(|x| config.element.round(x))
            .collect();
        let mut tensor = Tensor::f32(&shape, values);
        tensor.element = config.element;
        tensors.insert((*name).to_owned(), tensor);
    }
    let mut add = |name: &str, tensor| tensors.insert(name.to_owned(), tensor);
    if let Some(element) = config.bias {
        let shape = &problem.bias_shape;
        let values = random.normals(shape.iter().product(), 0.0, 1.0);
        // every seventeenth masks
        let value = |(i, x)| {
            if i % 17 == 5 {
                f32::NEG_INFINITY
            } else {
                element.round(x)
            }
        };
        let values = values.into_iter().enumerate().map(value).collect();
        let mut tensor = Tensor::f32(shape, values);
        tensor.element = element;
        add("bias", tensor);
    }
    if config.mask {
        let shape = &problem.mask_shape;
        let keys = shape.last().copied().unwrap_or(1);
        let noise = random.normals(shape.iter().product(), 0.0, 1.0);
        // blocks that allow all, that allow nothing, and rows that allow nothing among the rest
        let allowed = |(i, x): (usize, f32)| match (i / keys / 64 + i % keys / 32) % 3 {
            0 => true,
            1 => x > -0.5 && i / keys % 7 != 3,
            _ => keys < 64,
        };
        let values = noise.into_iter().enumerate().map(allowed).collect();
        add("mask", Tensor::bool(shape, values));
    }
    let heads = shape.num_heads as usize;
    if config.alibi {
        let slopes = (0..heads)
            .map(|h| 0.5f32.powf((h + 1) as f32 / 2.0))
            .collect();
        add("alibi_slopes", Tensor::f32(&[heads], slopes));
    }
    if config.sinks {
        add(
            "sinks",
            Tensor::f32(&[heads], random.normals(heads, 0.0, 1.0)),
        );
    }
    let batch = shape.batch as usize;
    if problem.kv_lengths {
        // all keys, one less than half, none, and so on
        let length = |b: usize| match b % 3 {
            0 => shape.kv_len,
            1 => shape.kv_len.saturating_sub(1) / 2,
            _ => 0,
        };
        let lengths = (0..batch).map(|b| i64::from(length(b))).collect();
        add("kv_lengths", Tensor::i64(&[batch], lengths));
    }
    if let Some(packed) = shape.packed {
        for (name, tokens) in [
            ("cu_seqlens_q", packed.query_tokens),
            ("cu_seqlens_k", packed.key_tokens),
        ] {
            add(
                name,
                Tensor::i64(&[batch + 1], starts(batch, tokens.into())),
            );
        }
    }
    if let Some(paged) = shape.paged {
        let pages = i64::from(paged.num_blocks);
        let count = batch * paged.max_blocks as usize;
        // no two alike as long as there are enough, and not in order
        let table = (0..count as i64).map(|i| (i * 7 + 3) % pages).collect();
        add(
            "block_table",
            Tensor::i64(&[batch, paged.max_blocks as usize], table),
        );
    }
    if problem.grad {
        let values = random.normals(output.iter().product(), 0.0, 1.0);
        add("grad_output", Tensor::f32(&output, values));
    }
    tensors
}

/// Sequences of which the first is the longest, each next one shorter, and the last takes what is left.
pub fn starts(batch: usize, tokens: i64) -> Vec<i64> {
    let mut starts = vec![0];
    for n in 0..batch {
        let left = tokens - starts[n];
        let own = if n + 1 == batch { left } else { left * 3 / 5 };
        starts.push(starts[n] + own);
    }
    starts
}
