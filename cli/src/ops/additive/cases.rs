//! What `verify` runs.

use gatefold::{
    AdditiveAttentionConfig, AdditiveAttentionMask, AdditiveAttentionShape, ElementType,
};

use super::Additive;
use crate::ops::Case;

/// Name; batch, q_len, kv_len; dim, value_dim; mask axes; whether there are lengths; element type.
type Row = (
    &'static str,
    [u32; 3],
    [u32; 2],
    Option<[bool; 3]>,
    bool,
    ElementType,
);

/// Every tile edge, mask and element type that the kernels tell apart, small enough for a CPU.
const ROWS: [Row; 9] = [
    ("one_of_each", [1, 1, 1], [1, 1], None, false, F32),
    ("plain", [2, 37, 53], [20, 17], None, false, F32),
    ("tiles_exact", [1, 64, 64], [16, 16], None, false, F32),
    ("single_query", [3, 1, 300], [20, 17], None, false, F32),
    ("no_keys", [1, 5, 0], [20, 17], None, false, F32),
    ("masked", [2, 33, 29], [20, 17], Some([true; 3]), false, F32),
    (
        "masked_keys_and_lengths",
        [4, 20, 50],
        [20, 17],
        Some([true, false, true]),
        true,
        F32,
    ),
    ("wide", [1, 40, 70], [200, 90], None, true, F32),
    (
        "halves",
        [2, 21, 45],
        [21, 17],
        None,
        true,
        ElementType::F16,
    ),
];

const F32: ElementType = ElementType::F32;

pub fn cases() -> Vec<Case> {
    ROWS.into_iter()
        .map(
            |(name, [batch, q_len, kv_len], dims, mask, kv_lengths, element)| {
                let mask =
                    mask.map(|[batch, query, key]| AdditiveAttentionMask { batch, query, key });
                let problem = Additive {
                    shape: AdditiveAttentionShape {
                        mask,
                        kv_lengths,
                        ..AdditiveAttentionShape::new(batch, q_len, kv_len)
                    },
                    config: AdditiveAttentionConfig {
                        dim: dims[0],
                        value_dim: Some(dims[1]),
                        element,
                        ..Default::default()
                    },
                    weights: true,
                    grad: true,
                };
                Case {
                    name: name.into(),
                    problem: Box::new(problem),
                    slow_to_compile: dims[1] > 40,
                }
            },
        )
        .collect()
}
