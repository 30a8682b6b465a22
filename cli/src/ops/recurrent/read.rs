//! The problem that the tensors of `run` pose: layers and directions follow from the names.

use gatefold::{Cell, Direction, RecurrentConfig};

use super::options::{Format, Nonlinearity, RunOptions};
use super::{Kind, Recurrent, parameter};
use crate::args::RunCommon;
use crate::error::{Error, Result};
use crate::ops::Problem;
use crate::tensors::{Tensors, floats, get, integers, mismatch};

const STEMS: [&str; 5] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"];

pub fn from_tensors(
    kind: Kind,
    common: &RunCommon,
    options: &RunOptions,
    tensors: &Tensors,
) -> Result<Box<dyn Problem>> {
    unsupported(common, options)?;
    let names = Names::of(kind, tensors)?;
    let cell = match (kind, options.nonlinearity) {
        (Kind::Rnn, Nonlinearity::Tanh) => Cell::RnnTanh,
        (Kind::Rnn, Nonlinearity::Relu) => Cell::RnnRelu,
        (_, Nonlinearity::Relu) => return Err(Error::usage("--nonlinearity is for rnn")),
        (Kind::Lstm, _) => Cell::Lstm,
        (Kind::Gru, _) => Cell::Gru,
    };
    let axes = match options.batch_first {
        true => "[batch, seq_len, input_size]",
        false => "[seq_len, batch, input_size]",
    };
    let &[first, second, input_size] = get(tensors, "input")?.shape.as_slice() else {
        return Err(mismatch(tensors, "input", axes));
    };
    let (seq_len, batch) = match options.batch_first {
        true => (second, first),
        false => (first, second),
    };
    let hidden_size = hidden_size(cell, tensors, input_size)?;
    let size = |name: &str, size: usize| {
        u32::try_from(size).map_err(|_| mismatch(tensors, name, "axes below 2^32"))
    };
    let config = RecurrentConfig {
        cell,
        input_size: size("input", input_size)?,
        hidden_size: size("weight_hh_l0", hidden_size)?,
        num_layers: names.layers,
        direction: match names.reverse {
            true => Direction::Bidirectional,
            false => Direction::Forward,
        },
        clip: options.clip,
        tier: options.tier.map(TryInto::try_into).transpose()?,
        variant: None,
    };
    let problem = Recurrent {
        bias: names.bias,
        h_0: tensors.contains_key("h_0"),
        c_0: tensors.contains_key("c_0"),
        lengths: None,
        batch_first: options.batch_first,
        ..Recurrent::new(config, size("input", seq_len)?, size("input", batch)?)
    };
    check(&problem, tensors)?;
    let lengths = lengths(tensors, seq_len, batch)?;
    Ok(Box::new(Recurrent { lengths, ..problem }))
}

fn unsupported(common: &RunCommon, options: &RunOptions) -> Result<()> {
    match options.format {
        Format::Pytorch => {}
        Format::Onnx => return Err(Error::not_yet("--format onnx")),
        Format::Keras => return Err(Error::not_yet("--format keras")),
    }
    let foreign = [
        ("--input-forget", options.input_forget),
        (
            "--linear-before-reset",
            options.linear_before_reset.is_some(),
        ),
        ("--activations", options.activations.is_some()),
        ("--direction", options.direction.is_some()),
    ];
    if let Some((flag, _)) = foreign.iter().find(|(_, given)| *given) {
        return Err(Error::usage(format_args!(
            "{flag} is for other values of --format"
        )));
    }
    if common.grad {
        return Err(Error::not_yet("--grad"));
    }
    Ok(())
}

/// What the names of the tensors say.
struct Names {
    layers: u32,
    reverse: bool,
    bias: bool,
}

impl Names {
    fn of(kind: Kind, tensors: &Tensors) -> Result<Self> {
        let mut names = Self {
            layers: 1,
            reverse: false,
            bias: false,
        };
        for name in tensors.keys() {
            match name.as_str() {
                "input" | "h_0" | "lengths" => {}
                "c_0" | "grad_c_n" if kind != Kind::Lstm => {
                    return Err(Error::usage(format_args!(
                        "{name}: only an lstm has a cell state"
                    )));
                }
                "c_0" => {}
                "grad_output" | "grad_h_n" | "grad_c_n" => return Err(Error::not_yet(name)),
                _ => names.see(name)?,
            }
        }
        // every layer below the last must be there; the check of the parameters names the missing one
        Ok(names)
    }

    fn see(&mut self, name: &str) -> Result<()> {
        let forward = name.strip_suffix("_reverse");
        let (stem, layer) = forward
            .unwrap_or(name)
            .rsplit_once("_l")
            .unwrap_or_default();
        let layer: u32 = match layer.parse() {
            // what PyTorch would write, and no file has so many layers
            Ok(layer) if STEMS.contains(&stem) && layer < 1024 => layer,
            _ => {
                return Err(Error::usage(format_args!(
                    "{name}: unknown tensor; a recurrence reads input, weight_ih_l0, weight_hh_l0, \
                     bias_ih_l0, bias_hh_l0, weight_hr_l0, the same with other layers and _reverse, \
                     h_0, c_0, lengths, grad_output, grad_h_n, grad_c_n"
                )));
            }
        };
        if stem == "weight_hr" {
            return Err(Error::not_yet(name));
        }
        self.layers = self.layers.max(layer + 1);
        self.reverse |= forward.is_some();
        self.bias |= stem.starts_with("bias");
        Ok(())
    }
}

fn hidden_size(cell: Cell, tensors: &Tensors, input_size: usize) -> Result<usize> {
    let gates = cell.num_gates() as usize;
    let name = parameter("weight_ih", 0, 0);
    match *get(tensors, &name)?.shape.as_slice() {
        [rows, width] if width == input_size && rows > 0 && rows % gates == 0 => Ok(rows / gates),
        _ => {
            let wanted = format!("[{gates} * hidden_size, {input_size}]");
            Err(mismatch(tensors, &name, &wanted))
        }
    }
}

/// Every parameter and state is there, of the right shape and type.
fn check(problem: &Recurrent, tensors: &Tensors) -> Result<()> {
    let mut wanted: Vec<_> = problem.parameters().into_iter().flatten().collect();
    for (given, name) in [(problem.h_0, "h_0"), (problem.c_0, "c_0")] {
        if given {
            wanted.push((name.to_owned(), problem.state_shape().to_vec()));
        }
    }
    for (name, shape) in &wanted {
        if get(tensors, name)?.shape != *shape {
            return Err(mismatch(tensors, name, &format!("{shape:?}")));
        }
        floats(tensors, name)?;
    }
    if problem.config.input_size == 0 {
        return Err(mismatch(tensors, "input", "input_size of at least 1"));
    }
    floats(tensors, "input").map(|_| ())
}

fn lengths(tensors: &Tensors, seq_len: usize, batch: usize) -> Result<Option<Vec<u32>>> {
    if !tensors.contains_key("lengths") {
        return Ok(None);
    }
    let lengths = integers(tensors, "lengths")?;
    if get(tensors, "lengths")?.shape != [batch] {
        return Err(mismatch(tensors, "lengths", &format!("[{batch}]")));
    }
    let wrong = lengths
        .iter()
        .enumerate()
        .find(|&(_, &length)| usize::try_from(length).map_or(true, |length| length > seq_len));
    if let Some((row, length)) = wrong {
        return Err(Error::usage(format_args!(
            "lengths: {length} at row {row}, expected 0 to {seq_len}"
        )));
    }
    Ok(Some(lengths.iter().map(|&length| length as u32).collect()))
}
