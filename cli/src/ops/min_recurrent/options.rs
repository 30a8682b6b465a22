//! Where problems come from: the flags and tensors of `run`, the grid of `bench`, the lists of `verify` and `info`.

use clap::{Args, ValueEnum};
use gatefold::{Candidate, Capabilities, MinCell, MinRecurrentConfig, MinRecurrentShape};

use super::{Grad, MinRecurrent, name};
use crate::args::list::{List, product};
use crate::args::{BenchCommon, RunCommon};
use crate::error::{Error, Result};
use crate::ops::recurrent::call::{axes, expect, lengths, only, sequence};
use crate::ops::scan::{one_gradient, possible};
use crate::ops::{Case, Problem, grid_axes};
use crate::tensors::{Tensors, mismatch};

#[derive(Debug, Args)]
pub struct How {
    /// What makes the new value of the product x: x, or what keeps states positive
    #[arg(long, value_enum, default_value_t)]
    pub candidate: CandidateName,
    /// Later times come first
    #[arg(long)]
    pub reverse: bool,
    /// Force the steps of a chunk of the scan
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk_len: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CandidateName {
    #[default]
    Linear,
    Positive,
}

impl CandidateName {
    fn of_library(self) -> Candidate {
        match self {
            Self::Linear => Candidate::Linear,
            Self::Positive => Candidate::Positive,
        }
    }
}

#[derive(Debug, Args)]
pub struct RunOptions {
    /// Input and output are [batch, seq_len, ...]
    #[arg(long)]
    pub batch_first: bool,
    #[command(flatten)]
    pub how: How,
}

#[derive(Debug, Args)]
pub struct BenchOptions {
    /// [default: 1]
    #[arg(long)]
    pub batch: Vec<List>,
    /// [default: 64]
    #[arg(long)]
    pub seq_len: Vec<List>,
    /// [default: 256]
    #[arg(long)]
    pub input_size: Vec<List>,
    /// [default: 256]
    #[arg(long)]
    pub hidden_size: Vec<List>,
    /// [default: 1]
    #[arg(long)]
    pub layers: Vec<List>,
    #[command(flatten)]
    pub how: How,
}

impl How {
    fn of(&self, config: MinRecurrentConfig) -> MinRecurrentConfig {
        MinRecurrentConfig {
            candidate: self.candidate.of_library(),
            reverse: self.reverse,
            chunk_len: self.chunk_len,
            ..config
        }
    }
}

/// Parameter and layer of a name like `weight_l0`.
fn parameter(name: &str) -> Option<(&'static str, u32)> {
    let (stem, layer) = name.rsplit_once("_l")?;
    let stem = ["weight", "bias"]
        .into_iter()
        .find(|&known| known == stem)?;
    let number: u32 = layer.parse().ok()?;
    // neither +1 nor 01
    (number.to_string() == layer).then_some((stem, number))
}

pub fn from_tensors(
    cell: MinCell,
    common: &RunCommon,
    options: &RunOptions,
    tensors: &Tensors,
) -> Result<Box<dyn Problem>> {
    const KNOWN: [&str; 5] = ["input", "h_0", "lengths", "grad_output", "grad_h_n"];
    let known = |name: &str| KNOWN.contains(&name) || parameter(name).is_some();
    let words = "input, weight_l0, bias_l0, ..._l1, h_0, lengths, grad_output, grad_h_n";
    only(tensors, name(cell), known, words)?;
    let [seq_len, batch, input_size] = sequence(tensors, "input", options.batch_first)?;
    let gates = cell.num_gates();
    let wanted = format!("[{gates} * hidden_size, input_size]");
    let [rows, _] = axes(tensors, "weight_l0", &wanted)?;
    if rows == 0 || rows % gates != 0 {
        return Err(mismatch(tensors, "weight_l0", &wanted));
    }
    let found = || tensors.keys().filter_map(|name| parameter(name));
    let last = found().map(|(_, layer)| layer).max().unwrap_or(0);
    let has = |name: &str| tensors.contains_key(name);
    let problem = MinRecurrent {
        shape: MinRecurrentShape { seq_len, batch },
        config: options.how.of(MinRecurrentConfig {
            cell,
            input_size,
            hidden_size: rows / gates,
            num_layers: last.saturating_add(1),
            ..Default::default()
        }),
        h_0: has("h_0"),
        lengths: has("lengths"),
        bias: found().any(|(stem, _)| stem == "bias"),
        batch_first: options.batch_first,
        grad: common.grad.then_some(Grad {
            output: has("grad_output"),
            h_n: has("grad_h_n"),
        }),
    };
    agree(&problem, tensors)?;
    one_gradient(common.grad, tensors)?;
    possible(problem.plan(&Capabilities::floor(), None))?;
    Ok(Box::new(problem))
}

/// Every tensor has the shape that follows from `input` and `weight_l0`.
fn agree(problem: &MinRecurrent, tensors: &Tensors) -> Result<()> {
    let (config, gates) = (&problem.config, problem.config.cell.num_gates());
    let MinRecurrentShape { seq_len, batch } = problem.shape;
    let hidden = config.hidden_size;
    for layer in 0..config.num_layers {
        let (width, word) = match layer {
            0 => (config.input_size, "input_size"),
            _ => (hidden, "hidden_size"),
        };
        let wanted = format!("[{gates} * hidden_size, {word}]");
        expect(
            tensors,
            &format!("weight_l{layer}"),
            &[gates * hidden, width],
            &wanted,
        )?;
        let bias = format!("bias_l{layer}");
        if problem.bias && !tensors.contains_key(&bias) {
            return Err(Error::usage(format_args!(
                "{bias}: is missing; biases must be there for all or for none"
            )));
        }
        if problem.bias {
            expect(
                tensors,
                &bias,
                &[gates * hidden],
                &format!("[{gates} * hidden_size]"),
            )?;
        }
    }
    let states = [config.num_layers, batch, hidden];
    for name in ["h_0", "grad_h_n"] {
        if tensors.contains_key(name) {
            expect(tensors, name, &states, "[num_layers, batch, hidden_size]")?;
        }
    }
    if tensors.contains_key("grad_output") {
        let (shape, wanted) = match problem.batch_first {
            true => ([batch, seq_len, hidden], "[batch, seq_len, hidden_size]"),
            false => ([seq_len, batch, hidden], "[seq_len, batch, hidden_size]"),
        };
        expect(tensors, "grad_output", &shape, wanted)?;
    }
    lengths(tensors, "lengths", batch, seq_len)?;
    Ok(())
}

pub fn grid(
    cell: MinCell,
    common: &BenchCommon,
    options: &BenchOptions,
) -> Result<Vec<Box<dyn Problem>>> {
    common.only_f32()?;
    let axes = grid_axes(&[
        ("--batch", &options.batch, 1),
        ("--seq-len", &options.seq_len, 64),
        ("--input-size", &options.input_size, 256),
        ("--hidden-size", &options.hidden_size, 256),
        ("--layers", &options.layers, 1),
    ])?;
    let row = |row: Vec<u32>| {
        let mut problem = problem(cell, [row[0], row[1], row[2], row[3], row[4]]);
        problem.config = options.how.of(problem.config);
        problem.grad = common.grad.then_some(Grad {
            output: true,
            h_n: false,
        });
        possible(problem.plan(&Capabilities::floor(), None))?;
        Ok(Box::new(problem) as Box<dyn Problem>)
    };
    product(&axes).into_iter().map(row).collect()
}

/// Of batch, seq_len, input_size, hidden_size, layers; with biases, from zeros.
pub(super) fn problem(cell: MinCell, sizes: [u32; 5]) -> MinRecurrent {
    let [batch, seq_len, input_size, hidden_size, num_layers] = sizes;
    MinRecurrent {
        shape: MinRecurrentShape { seq_len, batch },
        config: MinRecurrentConfig {
            cell,
            input_size,
            hidden_size,
            num_layers,
            ..Default::default()
        },
        h_0: false,
        lengths: false,
        bias: true,
        batch_first: false,
        grad: None,
    }
}

pub fn showcase() -> Vec<Box<dyn Problem>> {
    let sizes = [(MinCell::Gru, 128), (MinCell::Lstm, 512)];
    let one = |(cell, hidden)| {
        let problem = problem(cell, [1, 512, hidden, hidden, 1]);
        Box::new(problem) as Box<dyn Problem>
    };
    sizes.into_iter().map(one).collect()
}

/// What `verify` runs.
pub fn cases() -> Vec<Case> {
    let all = Grad {
        output: true,
        h_n: true,
    };
    let mut cases = Vec::new();
    for cell in [MinCell::Gru, MinCell::Lstm] {
        let states = |mut problem: MinRecurrent, grad| {
            problem.h_0 = true;
            problem.grad = grad;
            problem
        };
        let mut no_bias = problem(cell, [9, 4, 7, 13, 1]);
        no_bias.bias = false;
        let mut positive = problem(cell, [3, 19, 7, 13, 2]);
        positive.config.candidate = Candidate::Positive;
        let mut ragged = states(problem(cell, [3, 37, 7, 13, 2]), Some(all));
        ragged.lengths = true;
        ragged.config.chunk_len = Some(8);
        let mut reverse = ragged;
        reverse.config.reverse = true;
        for (name, problem) in [
            ("states", states(problem(cell, [3, 19, 7, 13, 1]), None)),
            ("no_bias", no_bias),
            ("positive", positive),
            ("long", problem(cell, [1, 2000, 7, 5, 1])),
            ("grad", states(problem(cell, [3, 19, 7, 13, 1]), Some(all))),
            ("grad_two_layers_lengths_chunks", ragged),
            ("grad_two_layers_lengths_chunks_reverse", reverse),
            (
                "grad_hidden_128",
                states(problem(cell, [2, 12, 40, 128, 1]), Some(all)),
            ),
        ] {
            cases.push(Case {
                name: name.to_owned(),
                problem: Box::new(problem),
                slow_to_compile: false,
            });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_layer() {
        assert_eq!(parameter("weight_l0"), Some(("weight", 0)));
        assert_eq!(parameter("bias_l12"), Some(("bias", 12)));
        for name in ["weight", "weight_l01", "weight_ih_l0", "weight_l-1"] {
            assert_eq!(parameter(name), None, "{name}");
        }
    }
}
