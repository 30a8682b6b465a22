//! Attention and recurrence kernels in plain WGSL, for any GPU that wgpu reaches.

mod attention;
pub mod clock;
mod context;
mod error;
mod gpu;
pub mod kernel;
pub mod peak;
mod plan;
pub mod reference;

pub use attention::{Attention, AttentionBuffers, AttentionConfig, AttentionShape, Causal, Layout};
pub use context::{Bound, Capabilities, Checks, Context};
pub use error::Error;
pub use gpu::Gpu;
pub use plan::{Plan, Variant};
pub use wgpu;
