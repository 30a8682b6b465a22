//! `cargo xtask golden`: remakes the known answers of tests/golden with PyTorch.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use xshell::cmd;

use crate::Workspace;

pub fn run(workspace: &Workspace) -> Result<()> {
    let shell = &workspace.shell;
    let folder = workspace.root.join("tests/golden");
    let mut scripts: Vec<PathBuf> = shell.read_dir(&folder).unwrap_or_default();
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    ensure!(!scripts.is_empty(), "no scripts in {}", folder.display());

    // a PyTorch that the machine already has is seen through, and not downloaded again
    let venv = workspace.target.join("golden-venv");
    let system = if cfg!(windows) { "python" } else { "python3" };
    cmd!(shell, "{system} -m venv --system-site-packages {venv}")
        .run()
        .context("install Python 3 with its venv module")?;
    let python = venv.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    cmd!(
        shell,
        "{python} -m pip install --quiet torch numpy safetensors"
    )
    .run()
    .context("cannot install PyTorch; is the network there?")?;
    for script in scripts {
        cmd!(shell, "{python} {script}").run()?;
    }
    Ok(())
}
