//! `cargo xtask race`: the main job, from a bare machine to a table.

use std::env::consts::EXE_SUFFIX;
use std::process::{Command, exit};

use anyhow::{Context, Result};
use clap::Args;
use xshell::cmd;

use crate::Workspace;
use crate::driver::{self, Need};
use crate::mesa::Mesa;

#[derive(Args)]
pub struct Options {
    /// Run on Mesa 26's llvmpipe, not on the system's driver; stands before the race's own options
    #[arg(long)]
    mesa26: bool,
    /// Handed to `gatefold race`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut words = Vec::new();
    let mut environment = Vec::new();
    if options.mesa26 {
        let mesa = Mesa::ensure(workspace)?;
        words.extend(mesa.runner().split_whitespace().map(str::to_owned));
        environment.extend(mesa.environment());
    } else {
        driver::ensure_system(&workspace.shell, Need::Vulkan)?;
    }

    cmd!(
        workspace.shell,
        "cargo build --release --package gatefold-cli"
    )
    .quiet()
    .run()?;
    let program = workspace
        .target
        .join("release")
        .join(format!("gatefold{EXE_SUFFIX}"));
    words.push(program.display().to_string());
    words.push("race".to_owned());
    words.extend(options.arguments.iter().cloned());

    // not through the shell: the race keeps the caller's folder, terminal and exit status
    let status = Command::new(&words[0])
        .args(&words[1..])
        .envs(environment)
        .status()
        .with_context(|| format!("cannot start {}", words[0]))?;
    match status.code() {
        Some(0) => Ok(()),
        code => exit(code.unwrap_or(1)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::Task;

    #[test]
    fn options_of_the_race_pass_through() {
        let parse = |words: &[&str]| {
            let words = ["xtask", "race"].iter().chain(words);
            match Task::parse_from(words) {
                Task::Race(options) => (options.mesa26, options.arguments),
                _ => unreachable!("the task is race"),
            }
        };
        let (mesa26, arguments) = parse(&["--mesa26", "--quick", "--out-dir", "out"]);
        assert!(mesa26);
        assert_eq!(arguments, ["--quick", "--out-dir", "out"]);
        let (mesa26, arguments) = parse(&["--cells", "lstm", "--mesa26"]);
        assert!(!mesa26);
        assert_eq!(arguments, ["--cells", "lstm", "--mesa26"]);
    }
}
