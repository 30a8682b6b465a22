//! The options of attention as cases: each alone, and together.

use gatefold::{Axes, Causal, ElementType, Layout};

use super::attention::{AXES, Case, SMALL};

/// The options, each by itself.
pub const OPTIONS: [Case; 14] = [
    Case {
        window_left: Some(9),
        window_right: Some(4),
        ..SMALL
    },
    Case {
        window_left: Some(0),
        causal: Causal::BottomRight,
        ..SMALL
    },
    Case {
        window_right: Some(0),
        ..SMALL
    },
    Case {
        window_left: Some(70),
        causal: Causal::Offset(60),
        ..SMALL
    },
    Case {
        softcap: Some(2.0),
        ..SMALL
    },
    Case {
        softcap: Some(1000.0),
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
    Case {
        scale: Some(-0.3),
        ..SMALL
    },
];

/// And together, with everything else that differs.
pub const COMBINATIONS: [Case; 5] = [
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
        head_dim: 20,
        causal: Causal::TopLeft,
        bias: Some((ElementType::Bf16, AXES[3])),
        sinks: true,
        kv_lengths: Some(&[0, 40]),
        ..SMALL
    },
    Case {
        q_len: 90,
        kv_len: 150,
        mask: Some(AXES[5]),
        dropout: Some(0.5),
        window_right: Some(30),
        ..SMALL
    },
    Case {
        element: ElementType::F16,
        causal: Causal::Offset(-7),
        mask: Some(AXES[3]),
        alibi: true,
        sinks: true,
        ..SMALL
    },
    Case {
        element: ElementType::Bf16,
        head_dim: 13,
        value_dim: 7,
        bias: Some((ElementType::F32, AXES[4])),
        softcap: Some(1.0),
        ..SMALL
    },
];
