#![doc = include_str!("../README.md")]

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
pub mod peak;
pub mod philox;
mod plan;
mod recurrent;
pub mod reference;

pub use attention::{
    Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape, Axes, Causal,
    Layout, Packed, Paged,
};
pub use bound::Bound;
pub use capabilities::Capabilities;
pub use context::{Checks, Context};
pub use element::ElementType;
pub use error::Error;
pub use gemm::{Gemm, GemmBuffers, GemmConfig, GemmShape};
pub use gpu::Gpu;
pub use gradient_clip::{GradientClip, GradientClipBuffers, GradientClipConfig};
pub use plan::{Plan, Variant};
pub use recurrent::{
    Activation, Activations, Cell, Direction, Given, Recurrent, RecurrentBackwardBuffers,
    RecurrentBackwardGiven, RecurrentBuffers, RecurrentConfig, RecurrentGradients,
    RecurrentSession, RecurrentShape, RecurrentWeights, SessionBound, SessionBuffers, Tier,
    probe_dispatch,
};
pub use wgpu;
