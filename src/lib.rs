#![doc = include_str!("../README.md")]

mod additive_attention;
mod attention;
mod bound;
mod capabilities;
pub mod clock;
mod context;
mod element;
mod error;
mod gemm;
mod gpu;
mod gradient_clip;
pub mod kernel;
mod min_recurrent;
pub mod peak;
pub mod philox;
mod plan;
mod probe;
mod recurrent;
pub mod reference;
mod scan;

pub use additive_attention::{
    AdditiveAttention, AdditiveAttentionBackwardBuffers, AdditiveAttentionBuffers,
    AdditiveAttentionConfig, AdditiveAttentionMask, AdditiveAttentionShape,
};
pub use attention::{
    Attention, AttentionAppend, AttentionAppendBuffers, AttentionAppendConfig,
    AttentionAppendShape, AttentionBackwardBuffers, AttentionBackwardGiven, AttentionBuffers,
    AttentionConfig, AttentionGiven, AttentionMerge, AttentionMergeBuffers, AttentionShape,
    AttentionWeightsBuffers, Axes, Causal, Chosen, Layout, Packed, Paged,
};
pub use bound::Bound;
pub use capabilities::Capabilities;
pub use context::{Checks, Context};
pub use element::ElementType;
pub use error::Error;
pub use gemm::{Gemm, GemmBuffers, GemmConfig, GemmShape};
pub use gpu::Gpu;
pub use gradient_clip::{GradientClip, GradientClipBuffers, GradientClipConfig};
pub use min_recurrent::{
    Candidate, MinCell, MinRecurrent, MinRecurrentBackwardBuffers, MinRecurrentBackwardGiven,
    MinRecurrentBuffers, MinRecurrentConfig, MinRecurrentGiven, MinRecurrentShape,
    MinRecurrentWeights,
};
pub use plan::{Plan, Variant};
pub use probe::{cooperative_probe_dispatch, probe_dispatch};
pub use recurrent::{
    Activation, Activations, Cell, Direction, Given, Recurrent, RecurrentBackwardBuffers,
    RecurrentBackwardGiven, RecurrentBuffers, RecurrentConfig, RecurrentGradients,
    RecurrentSession, RecurrentShape, RecurrentWeights, SessionBound, SessionBuffers, Tier,
};
pub use scan::{
    Scan, ScanBackwardBuffers, ScanBackwardGiven, ScanBuffers, ScanConfig, ScanGiven, ScanShape,
};
pub use wgpu;
