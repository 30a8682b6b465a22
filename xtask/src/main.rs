//! `cargo xtask`: what a fresh machine needs, and the developer's tasks.

mod apt;
mod driver;
mod golden;
mod mesa;
mod race;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use xshell::{Shell, cmd};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
/// What a fresh machine needs, and the developer's tasks.
enum Task {
    /// Make sure that a Vulkan driver is there, and unpack Mesa 26 beside the build.
    ///
    /// Standard output holds the lines that let a shell run programs on Mesa 26:
    /// `eval "$(cargo xtask driver)"`.
    Driver,
    /// Everything that must pass: format, clippy, documentation and tests.
    Test(test::Options),
    /// Build the program in release and run the race of attention against recurrence.
    Race(race::Options),
    /// Remake the known answers of tests/golden with PyTorch.
    Golden,
}

/// The checkout, and where its build goes.
struct Workspace {
    shell: Shell,
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    fn open() -> Result<Self> {
        let shell = Shell::new()?;
        let metadata = cmd!(shell, "cargo metadata --no-deps --format-version 1")
            .quiet()
            .read()
            .context("run `cargo xtask` inside the checkout")?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
        let path = |key: &str| {
            let path = metadata[key].as_str().map(PathBuf::from);
            path.with_context(|| format!("`cargo metadata` names no {key}"))
        };
        let root = path("workspace_root")?;
        shell.change_dir(&root);
        Ok(Self {
            shell,
            root,
            target: path("target_directory")?,
        })
    }
}

fn main() -> ExitCode {
    let task = Task::parse();
    let done = Workspace::open().and_then(|workspace| match task {
        Task::Driver => driver::run(&workspace),
        Task::Test(options) => test::run(&workspace, &options),
        Task::Race(options) => race::run(&workspace, &options),
        Task::Golden => golden::run(&workspace),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
