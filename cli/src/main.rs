//! The program `gatefold`: run, measure and verify attention and recurrence kernels on this machine.

mod adapter;
mod args;
mod bench;
mod error;
mod gradients;
mod heatmap;
mod info;
mod ops;
mod peak;
mod race;
mod report;
mod run;
mod tensors;
mod verify;

use std::process::ExitCode;

use args::Command;
use clap::Parser;
use clap::error::ErrorKind;

fn main() -> ExitCode {
    quiet_wayland();
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => return usage(&error),
    };
    let done = match command {
        Command::Info(args) => info::run(&args),
        Command::Peak(args) => peak::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Race(options) => race::run(&options),
        Command::Gradients(options) => gradients::run(&options),
        Command::Heatmap(options) => heatmap::run(options),
        Command::Run(args) => run::run(args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            report::log(format_args!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// A Vulkan layer of Mesa asks for a Wayland display, and libwayland complains on standard error where the
/// variable is missing. The path holds no display either, which it takes in silence.
fn quiet_wayland() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", "/dev/null") };
    }
}

/// Help and version as they are; a mistake as one line.
fn usage(error: &clap::Error) -> ExitCode {
    let help = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == help {
        // nobody is left to tell when the terminal is gone
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
    report::log(line);
    ExitCode::from(2)
}
