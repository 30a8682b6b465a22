//! `cargo xtask test`: everything that must pass.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use xshell::{Cmd, Shell, cmd};

use crate::Workspace;
use crate::driver::{self, Need};
use crate::mesa::Mesa;

#[derive(Args)]
pub struct Options {
    /// Skip the smoke tests on the system's own Vulkan and OpenGL drivers
    #[arg(long)]
    fast: bool,
    /// Run everything on the system's own driver
    #[arg(long)]
    no_mesa26: bool,
}

pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let shell = &workspace.shell;
    let mesa = if options.no_mesa26 {
        None
    } else {
        mesa_for_tests(workspace)
    };
    let smoke = cfg!(target_os = "linux") && !options.fast;
    if smoke {
        driver::ensure_system(shell, Need::VulkanAndOpenGl)?;
    } else if mesa.is_none() {
        driver::ensure_system(shell, Need::Vulkan)?;
    }

    let mut steps = Steps::default();
    steps.run("format", cmd!(shell, "cargo fmt --all --check"));
    steps.run(
        "clippy",
        cmd!(
            shell,
            "cargo clippy --workspace --all-targets -- -D warnings"
        ),
    );
    let doc = cmd!(shell, "cargo doc --workspace --lib --no-deps");
    steps.run("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"));

    let tests = cmd!(shell, "cargo test --workspace --no-fail-fast");
    match &mesa {
        // the OpenGL in reach is the system's, an older Mesa that does not belong in this process
        Some(mesa) => {
            let tests = tests.envs(mesa.environment()).env("WGPU_BACKEND", "vulkan");
            steps.run(&format!("tests on Mesa {}", mesa.version), tests);
            // lanes of one subgroup run in lock step, which hides a missing barrier between them: of eight
            // that share a row, four are enough to show it
            let narrow = smoke_tests(shell, "vulkan").envs(mesa.environment());
            let narrow = narrow.env("LP_NATIVE_VECTOR_WIDTH", "128");
            steps.run("smoke tests with subgroups of four", narrow);
        }
        None => steps.run("tests", tests),
    }
    if smoke {
        if mesa.is_some() {
            steps.run(
                "smoke tests on the system's Vulkan",
                smoke_tests(shell, "vulkan"),
            );
        }
        steps.run(
            "smoke tests on the system's OpenGL",
            smoke_tests(shell, "gl"),
        );
    }
    steps.summary()
}

/// The same driver on every machine without a GPU. Where one is, the tests run on that.
fn mesa_for_tests(workspace: &Workspace) -> Option<Mesa> {
    if !cfg!(target_os = "linux") || driver::has_gpu() {
        return None;
    }
    Mesa::ensure(workspace)
        .inspect_err(|error| eprintln!("the tests run on the system's driver: {error:#}"))
        .ok()
}

/// `--workspace` keeps the features, and with them the build, of the full run. One test at a time: on OpenGL
/// wgpu panics in a thread that waits more than a few seconds for another that compiles.
fn smoke_tests<'a>(shell: &'a Shell, backend: &str) -> Cmd<'a> {
    cmd!(
        shell,
        "cargo test --workspace --test smoke -- --test-threads=1"
    )
    .env("WGPU_BACKEND", backend)
}

#[derive(Default)]
struct Steps(Vec<(String, Duration, bool)>);

impl Steps {
    fn run(&mut self, name: &str, command: Cmd) {
        eprintln!("==> {name}: {command}");
        let start = Instant::now();
        let passed = command
            .quiet()
            .run()
            .inspect_err(|error| eprintln!("{error}"))
            .is_ok();
        self.0.push((name.to_owned(), start.elapsed(), passed));
    }

    fn summary(&self) -> Result<()> {
        eprintln!();
        for (name, time, passed) in &self.0 {
            let outcome = if *passed { "passed" } else { "FAILED" };
            eprintln!("{outcome} {:5.0} s  {name}", time.as_secs_f64());
        }
        match self.0.iter().filter(|(_, _, passed)| !passed).count() {
            0 => Ok(()),
            failed => bail!("{failed} of {} steps failed", self.0.len()),
        }
    }
}
