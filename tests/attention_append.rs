//! What is appended to a cache is where attention looks for it, and nothing else has changed.

mod common;

use common::attention::{Case, Inputs, SMALL, run};
use common::{Random, gpu};
use gatefold::{
    AttentionAppend, AttentionAppendBuffers, AttentionAppendConfig, AttentionAppendShape,
    Capabilities, ElementType, Error, Layout, Paged, Variant,
};

const SHAPE: AttentionAppendShape = AttentionAppendShape {
    batch: 3,
    num_kv_heads: 2,
    new_tokens: 4,
    capacity: 12,
    cache_layout: Layout::Bhsd,
    tokens_layout: Layout::Bhsd,
    paged: None,
};

const CONFIG: AttentionAppendConfig = AttentionAppendConfig {
    head_dim: 6,
    value_dim: Some(10),
    element: ElementType::F32,
    tokens: ElementType::F32,
};

const PAGES: Paged = Paged {
    num_blocks: 11,
    block_size: 4,
    max_blocks: 3,
};

/// Index of an element of `[rows, heads, len, dim]` in a layout.
fn at(layout: Layout, heads: usize, len: usize, dim: usize, i: [usize; 4]) -> usize {
    let [row, head, token, d] = i;
    match layout {
        Layout::Bhsd => ((row * heads + head) * len + token) * dim + d,
        Layout::Bshd => ((row * len + token) * heads + head) * dim + d,
        Layout::Strides {
            batch,
            head: of_head,
            token: of_token,
        } => row * batch as usize + head * of_head as usize + token * of_token as usize + d,
    }
}

/// The tensors before a call: keys and values of tokens and of the cache, lengths, pages.
struct Tensors {
    tokens: [Vec<f32>; 2],
    cache: [Vec<f32>; 2],
    lengths: Vec<u32>,
    pages: Vec<u32>,
}

impl Tensors {
    fn new(config: AttentionAppendConfig, shape: &AttentionAppendShape, lengths: &[u32]) -> Self {
        let mut random = Random::new(u64::from(shape.new_tokens) + 17);
        let heads = shape.num_kv_heads as usize;
        let (rows, len) = match shape.paged {
            Some(paged) => (paged.num_blocks, paged.block_size),
            None => (shape.batch, shape.capacity),
        };
        let dims = [config.head_dim, config.value_dim.unwrap()].map(|dim| dim as usize);
        let mut make = |rows: u32, len: u32, dim: usize, element: ElementType| -> Vec<f32> {
            let values = random.normals(rows as usize * heads * len as usize * dim, 1.0);
            values.iter().map(|&x| element.round(x)).collect()
        };
        let tokens = dims.map(|dim| make(shape.batch, shape.new_tokens, dim, config.tokens));
        let cache = dims.map(|dim| make(rows, len, dim, config.element));
        Self {
            tokens,
            cache,
            lengths: lengths.to_vec(),
            // one that is no page, and none twice
            pages: vec![7, 0, 3, 10, 2, 99, 1, 5, 8],
        }
    }

    /// What must be there after a call.
    fn appended(&self, config: AttentionAppendConfig, shape: &AttentionAppendShape) -> Self {
        let heads = shape.num_kv_heads as usize;
        let new = shape.new_tokens as usize;
        let capacity = match shape.paged {
            Some(paged) => paged.block_size * paged.max_blocks,
            None => shape.capacity,
        };
        let mut cache = self.cache.clone();
        for (side, dim) in [config.head_dim, config.value_dim.unwrap()]
            .into_iter()
            .enumerate()
        {
            let dim = dim as usize;
            for b in 0..shape.batch as usize {
                for t in 0..new {
                    let position = (self.lengths[b].min(capacity)) as usize + t;
                    if position >= capacity as usize {
                        continue;
                    }
                    let (row, token, len) = match shape.paged {
                        Some(paged) => {
                            let size = paged.block_size as usize;
                            let page = self.pages[b * paged.max_blocks as usize + position / size];
                            if page >= paged.num_blocks {
                                continue;
                            }
                            (page as usize, position % size, size)
                        }
                        None => (b, position, capacity as usize),
                    };
                    for head in 0..heads {
                        for d in 0..dim {
                            let from = at(shape.tokens_layout, heads, new, dim, [b, head, t, d]);
                            let to = at(shape.cache_layout, heads, len, dim, [row, head, token, d]);
                            cache[side][to] = config.element.round(self.tokens[side][from]);
                        }
                    }
                }
            }
        }
        let grown = |&length: &u32| (length.min(capacity) + shape.new_tokens).min(capacity);
        Self {
            tokens: self.tokens.clone(),
            cache,
            lengths: self.lengths.iter().map(grown).collect(),
            pages: self.pages.clone(),
        }
    }
}

/// Appends twice, and compares every word of the caches with what must be there.
fn check(config: AttentionAppendConfig, shape: AttentionAppendShape, lengths: &[u32]) {
    let Some(gpu) = gpu() else { return };
    let before = Tensors::new(config, &shape, lengths);
    let upload = |words: &[u32]| gpu.upload("words", words).unwrap();
    let tokens = before
        .tokens
        .each_ref()
        .map(|x| upload(&config.tokens.words(x)));
    let cache = before
        .cache
        .each_ref()
        .map(|x| upload(&config.element.words(x)));
    let kv_lengths = upload(&before.lengths);
    let block_table = upload(&before.pages);
    let append = AttentionAppend::new(gpu.context(), config).unwrap();
    let buffers = AttentionAppendBuffers {
        key: tokens[0].slice(..),
        value: tokens[1].slice(..),
        key_cache: cache[0].slice(..),
        value_cache: cache[1].slice(..),
        kv_lengths: kv_lengths.slice(..),
        block_table: shape.paged.map(|_| block_table.slice(..)),
    };
    let bound = append.bind(shape, buffers).unwrap();
    let mut want = before;
    for _ in 0..2 {
        gpu.run(|pass| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
        want = want.appended(config, &shape);
        for (buffer, want) in cache.iter().zip(&want.cache) {
            let want = config.element.words(want);
            assert_eq!(
                gpu.download::<u32>(buffer).unwrap(),
                want,
                "{config:?} {shape:?}"
            );
        }
        assert_eq!(gpu.download::<u32>(&kv_lengths).unwrap(), want.lengths);
    }
}

#[test]
fn any_layout_and_type() {
    for (element, tokens) in [
        (ElementType::F32, ElementType::F32),
        (ElementType::F16, ElementType::F16),
        (ElementType::F16, ElementType::F32),
        (ElementType::Bf16, ElementType::F32),
    ] {
        for cache_layout in [Layout::Bhsd, Layout::Bshd] {
            for tokens_layout in [Layout::Bhsd, Layout::Bshd] {
                let config = AttentionAppendConfig {
                    element,
                    tokens,
                    ..CONFIG
                };
                let shape = AttentionAppendShape {
                    cache_layout,
                    tokens_layout,
                    ..SHAPE
                };
                check(config, shape, &[0, 5, 3]);
                let paged = AttentionAppendShape {
                    paged: Some(PAGES),
                    ..shape
                };
                check(config, paged, &[0, 5, 3]);
            }
        }
    }
}

#[test]
fn odd_rows_of_f32_and_single_tokens() {
    let config = AttentionAppendConfig {
        head_dim: 7,
        value_dim: Some(5),
        ..CONFIG
    };
    check(config, SHAPE, &[1, 0, 7]);
    check(
        config,
        AttentionAppendShape {
            new_tokens: 1,
            ..SHAPE
        },
        &[11, 0, 10],
    );
}

#[test]
fn what_has_no_room_is_dropped() {
    check(CONFIG, SHAPE, &[12, 10, u32::MAX]);
    let paged = AttentionAppendShape {
        paged: Some(PAGES),
        ..SHAPE
    };
    check(CONFIG, paged, &[12, 7, 1_000_000]);
}

/// A cache that is filled token by token answers as one that was whole from the beginning.
#[test]
fn decoding_step_by_step_is_attention_over_the_whole() {
    let Some(gpu) = gpu() else { return };
    const STEPS: usize = 9;
    let case = Case {
        batch: 1,
        q_len: 1,
        kv_len: 16,
        kv_lengths: Some(&[STEPS as u32]),
        ..SMALL
    };
    let whole = case.inputs();
    let heads = case.num_kv_heads;
    let shape = AttentionAppendShape {
        batch: 1,
        num_kv_heads: heads,
        new_tokens: 1,
        capacity: 16,
        ..SHAPE
    };
    let config = AttentionAppendConfig {
        head_dim: case.head_dim,
        value_dim: Some(case.value_dim),
        ..CONFIG
    };
    let append = AttentionAppend::new(gpu.context(), config).unwrap();
    let upload = |x: &[f32]| gpu.upload("cache", x).unwrap();
    // past the length there may be anything
    let cache = [&whole.key, &whole.value].map(|x| upload(&vec![f32::NAN; x.len()]));
    let kv_lengths = gpu.upload("lengths", &[0_u32]).unwrap();
    for step in 0..STEPS {
        let token = |x: &[f32], dim: usize| -> Vec<f32> {
            let heads = x.chunks(16 * dim);
            heads
                .flat_map(|head| head[step * dim..][..dim].to_vec())
                .collect()
        };
        let key = upload(&token(&whole.key, case.head_dim as usize));
        let value = upload(&token(&whole.value, case.value_dim as usize));
        let buffers = AttentionAppendBuffers {
            key: key.slice(..),
            value: value.slice(..),
            key_cache: cache[0].slice(..),
            value_cache: cache[1].slice(..),
            kv_lengths: kv_lengths.slice(..),
            block_table: None,
        };
        let bound = append.bind(shape, buffers).unwrap();
        gpu.run(|pass| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(gpu.download::<u32>(&kv_lengths).unwrap(), [STEPS as u32]);
    let grown = Inputs {
        key: gpu.download(&cache[0]).unwrap(),
        value: gpu.download(&cache[1]).unwrap(),
        ..whole.clone()
    };
    let [got, want] = [&grown, &whole].map(|inputs| run(gpu, &case, Variant::Portable, inputs));
    assert_eq!(got, want);
}

#[test]
fn mistakes_are_named() {
    let device = Capabilities::floor();
    let plan = |config: AttentionAppendConfig, shape| config.plan(&device, shape).unwrap_err();
    let halves = AttentionAppendConfig {
        element: ElementType::F16,
        ..CONFIG
    };
    let odd = AttentionAppendConfig {
        head_dim: 5,
        ..halves
    };
    assert!(matches!(plan(odd, SHAPE), Error::Shape { .. }));
    let strange = AttentionAppendConfig {
        tokens: ElementType::Bf16,
        ..halves
    };
    assert!(matches!(
        plan(strange, SHAPE),
        Error::Operand { name: "tokens", .. }
    ));
    let apart = AttentionAppendShape {
        cache_layout: Layout::Strides {
            batch: 1000,
            head: 301,
            token: 10,
        },
        ..SHAPE
    };
    assert!(matches!(
        plan(halves, apart),
        Error::Operand {
            name: "key_cache",
            ..
        }
    ));
    let large = AttentionAppendShape {
        capacity: 1 << 28,
        ..SHAPE
    };
    assert!(matches!(plan(CONFIG, large), Error::Limit { .. }));
    let none = AttentionAppendShape {
        new_tokens: 0,
        ..SHAPE
    };
    assert!(CONFIG.plan(&device, none).unwrap().dispatches.is_empty());
}
