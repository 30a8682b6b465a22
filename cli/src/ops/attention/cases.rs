//! What `verify` runs.

use gatefold::{AttentionConfig, AttentionShape, Causal};

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
    ROWS.into_iter()
        .map(|(name, [b, h, kv_h, q_len, kv_len], dims, causal, scale)| {
            let problem = Attention {
                shape: AttentionShape::new(b, h, kv_h, q_len, kv_len),
                config: AttentionConfig {
                    head_dim: dims[0],
                    value_dim: Some(dims[1]),
                    causal,
                    scale,
                    ..Default::default()
                },
            };
            Case {
                name: name.into(),
                problem: Box::new(problem),
                slow_to_compile: dims[0] + dims[1] > 40,
            }
        })
        .collect()
}
