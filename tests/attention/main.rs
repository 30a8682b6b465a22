//! Attention on the device against the f64 reference, in every variant and guise of the device.

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod options;
mod poison;
mod shapes;
