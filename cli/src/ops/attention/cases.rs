//! What `verify` runs.

use gatefold::{
    AttentionConfig, AttentionShape, Axes, Causal, Chosen, ElementType, Layout, Packed, Paged,
};

use super::Attention;
use crate::ops::Case;

/// Name; batch, heads, key/value heads, q_len, kv_len; head_dim, value_dim; mask; scale.
type Row = (&'static str, [u32; 5], [u32; 2], Causal, Option<f32>);

/// Every tile edge, mask and kind of head that the kernels tell apart, small enough for a CPU. Few
/// different head dimensions: each is a kernel to compile.
const ROWS: [Row; 17] = [
    ("one_of_each", [1, 1, 1, 1, 1], [16, 16], Causal::No, None),
    ("plain", [2, 3, 3, 37, 53], [16, 16], Causal::No, None),
    ("tiles_exact", [1, 2, 2, 64, 64], [16, 16], Causal::No, None),
    (
        "tiles_less_one",
        [1, 2, 2, 63, 31],
        [16, 16],
        Causal::No,
        None,
    ),
    (
        "tiles_more_one",
        [1, 2, 2, 65, 33],
        [16, 16],
        Causal::No,
        None,
    ),
    (
        "single_query",
        [2, 4, 1, 1, 300],
        [16, 16],
        Causal::No,
        None,
    ),
    ("no_keys", [1, 2, 2, 5, 0], [16, 16], Causal::No, None),
    (
        "large_scores",
        [1, 2, 2, 40, 70],
        [16, 16],
        Causal::No,
        Some(700.0),
    ),
    (
        "negative_scale",
        [1, 2, 2, 40, 70],
        [16, 16],
        Causal::No,
        Some(-0.25),
    ),
    (
        "grouped_causal",
        [2, 6, 2, 65, 129],
        [16, 16],
        Causal::TopLeft,
        None,
    ),
    (
        "bottom_right_fewer_queries",
        [1, 2, 2, 20, 75],
        [16, 16],
        Causal::BottomRight,
        None,
    ),
    (
        "bottom_right_more_queries",
        [1, 2, 2, 75, 20],
        [16, 16],
        Causal::BottomRight,
        None,
    ),
    (
        "offset_negative",
        [1, 2, 2, 40, 50],
        [16, 16],
        Causal::Offset(-9),
        None,
    ),
    (
        "offset_positive",
        [1, 2, 2, 40, 50],
        [16, 16],
        Causal::Offset(7),
        None,
    ),
    (
        "head_dim_odd",
        [1, 2, 1, 33, 40],
        [33, 5],
        Causal::TopLeft,
        None,
    ),
    (
        "head_dim_64",
        [1, 2, 2, 128, 160],
        [64, 64],
        Causal::TopLeft,
        None,
    ),
    (
        "head_dim_128",
        [1, 2, 1, 70, 90],
        [128, 128],
        Causal::No,
        None,
    ),
];

pub fn cases() -> Vec<Case> {
    let plain = ROWS
        .into_iter()
        .map(|(name, [b, h, kv_h, q_len, kv_len], dims, causal, scale)| {
            let config = AttentionConfig {
                head_dim: dims[0],
                value_dim: Some(dims[1]),
                causal,
                scale,
                ..Default::default()
            };
            let shape = AttentionShape::new(b, h, kv_h, q_len, kv_len);
            (name, Attention::plain(shape, config))
        });
    let all = plain.chain(options());
    all.map(|(name, problem)| Case {
        name: name.into(),
        slow_to_compile: problem.config.head_dim + problem.config.value_dim() > 40,
        problem: Box::new(problem),
    })
    .collect()
}

/// Each option by itself and all together, forward and backward.
fn options() -> Vec<(&'static str, Attention)> {
    let config = AttentionConfig {
        head_dim: 16,
        ..Default::default()
    };
    let shape = AttentionShape::new(3, 4, 2, 41, 70);
    let plain = Attention::plain(shape, config);
    let with = |config: AttentionConfig| Attention {
        config,
        ..plain.clone()
    };
    let window = with(AttentionConfig {
        window_left: Some(20),
        window_right: Some(5),
        ..config
    });
    let softcap = with(AttentionConfig {
        softcap: Some(2.0),
        ..config
    });
    let bias = Attention {
        bias_shape: vec![4, 41, 70],
        shape: AttentionShape {
            bias_axes: Axes {
                batch: false,
                ..Axes::ALL
            },
            ..shape
        },
        ..with(AttentionConfig {
            bias: Some(ElementType::F32),
            ..config
        })
    };
    let mask = Attention {
        mask_shape: vec![3, 1, 41, 70],
        shape: AttentionShape {
            mask_axes: Axes {
                head: false,
                ..Axes::ALL
            },
            ..shape
        },
        ..with(AttentionConfig {
            mask: true,
            ..config
        })
    };
    let alibi_sinks = with(AttentionConfig {
        causal: Causal::BottomRight,
        alibi: true,
        sinks: true,
        ..config
    });
    let lengths = Attention {
        kv_lengths: true,
        ..with(AttentionConfig {
            causal: Causal::BottomRight,
            ..config
        })
    };
    let dropout = with(AttentionConfig {
        dropout: Some(0.3),
        ..config
    });
    let halves = with(AttentionConfig {
        element: ElementType::F16,
        ..config
    });
    let packed = Attention {
        shape: AttentionShape {
            q_len: 60,
            kv_len: 72,
            packed: Some(Packed {
                query_tokens: 100,
                key_tokens: 120,
            }),
            ..shape.with_layout(Layout::Bshd)
        },
        ..with(AttentionConfig {
            causal: Causal::TopLeft,
            ..config
        })
    };
    let paged = Attention {
        kv_lengths: true,
        shape: AttentionShape {
            kv_len: 80,
            paged: Some(Paged {
                num_blocks: 20,
                block_size: 16,
                max_blocks: 5,
            }),
            ..shape
        },
        ..with(AttentionConfig {
            causal: Causal::BottomRight,
            ..config
        })
    };
    let halves_packed = Attention {
        config: AttentionConfig {
            element: ElementType::F16,
            ..packed.config
        },
        ..packed.clone()
    };
    let everything = Attention {
        bias_shape: bias.bias_shape.clone(),
        mask_shape: mask.mask_shape.clone(),
        kv_lengths: true,
        weights: Some(Chosen::all(&shape)),
        shape: AttentionShape {
            bias_axes: bias.shape.bias_axes,
            mask_axes: mask.shape.mask_axes,
            ..shape
        },
        ..with(AttentionConfig {
            causal: Causal::BottomRight,
            window_left: Some(30),
            softcap: Some(3.0),
            bias: Some(ElementType::F16),
            mask: true,
            alibi: true,
            sinks: true,
            ..config
        })
    };
    // several tiles of each kernel for halves
    let halves_of = |head_dim: u32| Attention {
        kv_lengths: true,
        shape: AttentionShape::new(2, 4, 2, 150, 200),
        ..with(AttentionConfig {
            head_dim,
            causal: Causal::BottomRight,
            ..halves.config
        })
    };
    let everything_of_halves = Attention {
        config: AttentionConfig {
            element: ElementType::F16,
            ..everything.config
        },
        ..everything.clone()
    };
    // as many workgroups as get the larger tiles of a GPU, and several tiles of keys
    let many_queries = Attention {
        mask_shape: vec![1, 129, 300],
        shape: AttentionShape {
            mask_axes: Axes {
                batch: false,
                head: false,
                ..Axes::ALL
            },
            ..AttentionShape::new(8, 16, 4, 129, 300)
        },
        ..with(AttentionConfig {
            causal: Causal::BottomRight,
            window_left: Some(190),
            mask: true,
            ..config
        })
    };
    let grad = |problem: &Attention| Attention {
        grad: true,
        ..problem.clone()
    };
    vec![
        ("grad", grad(&plain)),
        ("grad_bias", grad(&bias)),
        ("grad_dropout", grad(&dropout)),
        ("grad_f16", grad(&halves)),
        ("grad_packed", grad(&packed)),
        ("grad_packed_f16", grad(&halves_packed)),
        ("grad_everything", grad(&everything)),
        ("grad_many_queries", grad(&many_queries)),
        ("window", window),
        ("softcap", softcap),
        ("bias", bias),
        ("mask", mask),
        ("alibi_sinks", alibi_sinks),
        ("kv_lengths", lengths),
        ("dropout", dropout),
        ("f16_head_dim_64", halves_of(64)),
        ("f16_head_dim_192", halves_of(192)),
        ("f16_everything", everything_of_halves),
        ("f16", halves),
        ("packed", packed),
        ("paged", paged),
        ("everything", everything),
    ]
}
