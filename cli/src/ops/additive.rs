//! Additive attention: its flags, for now.

use clap::Args;

#[derive(Debug, Args)]
pub struct RunOptions {
    /// Write the softmax's weights too
    #[arg(long)]
    pub weights: bool,
}
