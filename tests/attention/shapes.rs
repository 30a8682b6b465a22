//! Sizes, layouts and element types.

use crate::common::attention::{
    AXES, Case, MANY, SMALL, check, check_on, check_option, large_gpu, variants,
};
use crate::common::{gpu, guises};
use gatefold::{Axes, Causal, ElementType, Layout};

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

/// With subgroups of 16 that is another tile than with fewer: `.ci/run` runs this with both.
#[test]
fn many_queries_get_larger_tiles() {
    let Some(gpu) = gpu() else { return };
    let gpu = large_gpu(gpu);
    let keys = match gpu.context().capabilities().lanes_within_subgroup(16) {
        16 => 128,
        _ => 32,
    };
    // several tiles of keys: inside the masks, across their edges, outside
    let long = Case {
        kv_len: 300,
        ..MANY
    };
    let cases = [
        MANY,
        Case {
            num_kv_heads: 4,
            window_left: Some(190),
            softcap: Some(2.0),
            dropout: Some(0.2),
            bias: Some((ElementType::F16, AXES[1])),
            alibi: true,
            sinks: true,
            kv_lengths: Some(&[300, 0, 1, 127, 128, 129, 256, 290]),
            layout: Layout::Bshd,
            ..long
        },
        Case {
            element: ElementType::F16,
            head_dim: 20,
            value_dim: 72,
            causal: Causal::No,
            mask: Some(Axes::ALL),
            ..long
        },
    ];
    let gpu = std::slice::from_ref(&gpu);
    let larger = format!("128 queries x {keys} keys");
    for case in cases {
        let tiles = variants(gpu, &case);
        assert!(
            tiles.iter().any(|(_, _, tile)| tile.contains(&larger)),
            "{tiles:?}"
        );
        check_on(gpu, case);
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

/// How many keys a tile has follows from the dimensions.
#[test]
fn few_queries_of_several_widths() {
    let Some(gpu) = gpu() else { return };
    for (num_heads, q_len, [head_dim, value_dim], element) in [
        (4, 1, [128, 128], ElementType::F32),
        (4, 1, [128, 128], ElementType::Bf16),
        (8, 2, [64, 100], ElementType::F16),
        (2, 3, [33, 5], ElementType::F32),
        (1, 1, [512, 256], ElementType::F32),
        (2, 2, [40, 512], ElementType::F16),
    ] {
        let case = Case {
            batch: 1,
            num_heads,
            num_kv_heads: 1,
            q_len,
            kv_len: 431,
            head_dim,
            value_dim,
            element,
            causal: Causal::BottomRight,
            ..SMALL
        };
        check_on(&guises(gpu)[..3], case);
    }
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
