//! PyTorch's names: layers and directions are found from them.

use gatefold::reference::recurrent::Weights;
use gatefold::{Direction, Given, RecurrentConfig, RecurrentShape};

use super::call::{Call, at_least_one, axes, expect, lengths, only, sequence};
use super::gradients::{arriving, is_arriving, upstream};
use super::options::{Format, RunOptions, config};
use super::{Op, Recurrent};
use crate::args::RunCommon;
use crate::error::{Error, Result};
use crate::tensors::{Tensors, floats, get, mismatch};

const PARAMETERS: [&str; 5] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"];

/// Parameter, layer and direction of a name like `weight_ih_l0_reverse`.
fn parameter(name: &str) -> Option<(&'static str, u32, u32)> {
    let (rest, direction) = match name.strip_suffix("_reverse") {
        Some(rest) => (rest, 1),
        None => (name, 0),
    };
    let (stem, layer) = rest.rsplit_once("_l")?;
    let stem = PARAMETERS.into_iter().find(|&known| known == stem)?;
    let number: u32 = layer.parse().ok()?;
    // neither +1 nor 01
    (number.to_string() == layer).then_some((stem, number, direction))
}

pub fn suffix(layer: u32, direction: u32) -> String {
    let reverse = if direction == 1 { "_reverse" } else { "" };
    format!("_l{layer}{reverse}")
}

pub fn problem(
    op: Op,
    common: &RunCommon,
    options: &RunOptions,
    tensors: &Tensors,
) -> Result<Recurrent> {
    if op != Op::Lstm && tensors.contains_key("c_0") {
        return Err(Error::usage("c_0: only an lstm has a cell state"));
    }
    let (states, words): (&[&str], _) = match op {
        Op::Lstm => (&["h_0", "c_0"], "weight_hr_l0, h_0, c_0"),
        _ => (&["h_0"], "h_0"),
    };
    let known = |name: &str| {
        ["input", "lengths"].contains(&name)
            || states.contains(&name)
            || is_arriving(op, Format::Pytorch, name)
            || parameter(name).is_some()
    };
    let words = format!(
        "input, weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ..._l1, ..._reverse, {words}, lengths"
    );
    only(tensors, op.name(), known, &words)?;
    let base = config(op, common, options, true)?;
    sizes(op, base, common, options, tensors)
}

fn sizes(
    op: Op,
    base: RecurrentConfig,
    common: &RunCommon,
    options: &RunOptions,
    tensors: &Tensors,
) -> Result<Recurrent> {
    let found = || tensors.keys().filter_map(|name| parameter(name));
    let projected = found().any(|(stem, ..)| stem == "weight_hr");
    if projected && op != Op::Lstm {
        return Err(Error::usage("weight_hr: only an lstm has a projection"));
    }
    let [seq_len, batch, input_size] = sequence(tensors, "input", options.batch_first)?;
    let gates = base.cell.num_gates();
    get(tensors, "weight_ih_l0")?;
    let width = if projected {
        "proj_size"
    } else {
        "hidden_size"
    };
    let wanted = format!("[{gates} * hidden_size, {width}]");
    let [rows, state_size] = axes(tensors, "weight_hh_l0", &wanted)?;
    at_least_one(tensors, "weight_hh_l0", width, state_size)?;
    let (hidden_size, proj_size) = match projected {
        true => {
            let [size, hidden_size] = axes(tensors, "weight_hr_l0", "[proj_size, hidden_size]")?;
            if size != state_size || !(size..).contains(&hidden_size) {
                let wanted = format!("[{state_size}, hidden_size of at least {state_size}]");
                return Err(mismatch(tensors, "weight_hr_l0", &wanted));
            }
            (hidden_size, Some(size))
        }
        false => (state_size, None),
    };
    if u64::from(rows) != u64::from(gates) * u64::from(hidden_size) {
        let wanted = format!(
            "{gates} * {hidden_size} rows for the gates of {}",
            op.name()
        );
        return Err(mismatch(tensors, "weight_hh_l0", &wanted));
    }
    let last = found().map(|(_, layer, _)| layer).max().unwrap_or(0);
    let both = found().any(|(_, _, direction)| direction == 1);
    let config = RecurrentConfig {
        input_size,
        hidden_size,
        proj_size,
        num_layers: last.saturating_add(1),
        direction: if both {
            Direction::Bidirectional
        } else {
            Direction::Forward
        },
        ..base
    };
    let problem = Recurrent {
        op,
        config,
        shape: RecurrentShape {
            seq_len,
            batch,
            seed: options.seed,
        },
        given: Given {
            h_0: tensors.contains_key("h_0"),
            c_0: tensors.contains_key("c_0"),
            lengths: tensors.contains_key("lengths"),
            h_n: true,
            c_n: op == Op::Lstm,
            reserve: common.grad,
        },
        grad: common.grad,
        arriving: arriving(op, Format::Pytorch, common.grad, tensors)?,
        bias: found().any(|(stem, ..)| stem.starts_with("bias")),
        format: Format::Pytorch,
        batch_first: options.batch_first,
    };
    parameters(&problem, tensors)?;
    states(&problem, tensors)?;
    upstream(&problem, tensors)?;
    Ok(problem)
}

/// Every parameter of every layer and direction is there, in the shape that follows from the others.
fn parameters(problem: &Recurrent, tensors: &Tensors) -> Result<()> {
    let config = &problem.config;
    let (gates, hidden) = (config.cell.num_gates(), config.hidden_size);
    let (state, projected) = (config.state_size(), config.proj_size.is_some());
    let width = if projected {
        "proj_size"
    } else {
        "hidden_size"
    };
    let directions = config.direction.count();
    for layer in 0..config.num_layers {
        let input_size = match layer {
            0 => config.input_size,
            _ => directions * state,
        };
        for direction in 0..directions {
            let name = |stem: &str| format!("{stem}{}", suffix(layer, direction));
            let rows = gates * hidden;
            let input = match layer {
                0 => "input_size".to_owned(),
                _ => format!("num_directions * {width}"),
            };
            let wanted = format!("[{gates} * hidden_size, {input}]");
            expect(tensors, &name("weight_ih"), &[rows, input_size], &wanted)?;
            let wanted = format!("[{gates} * hidden_size, {width}]");
            expect(tensors, &name("weight_hh"), &[rows, state], &wanted)?;
            if projected {
                let wanted = "[proj_size, hidden_size]";
                expect(tensors, &name("weight_hr"), &[state, hidden], wanted)?;
            }
            for stem in ["bias_ih", "bias_hh"] {
                let name = name(stem);
                if problem.bias && !tensors.contains_key(&name) {
                    return Err(Error::usage(format_args!(
                        "{name}: is missing; biases must be there for all or for none"
                    )));
                }
                if problem.bias {
                    expect(tensors, &name, &[rows], &format!("[{gates} * hidden_size]"))?;
                }
            }
        }
    }
    Ok(())
}

/// `h_0`, `c_0` and `lengths`, where they are given.
pub fn states(problem: &Recurrent, tensors: &Tensors) -> Result<()> {
    let (shape, config) = (&problem.shape, &problem.config);
    let count = config.num_layers * config.direction.count();
    let width = match config.proj_size {
        Some(_) => "proj_size",
        None => "hidden_size",
    };
    for (name, len, width) in [
        ("h_0", config.state_size(), width),
        ("c_0", config.hidden_size, "hidden_size"),
    ] {
        if tensors.contains_key(name) {
            let wanted = format!("[num_layers * num_directions, batch, {width}]");
            expect(tensors, name, &[count, shape.batch, len], &wanted)?;
        }
    }
    lengths(tensors, "lengths", shape.batch, shape.seq_len)?;
    Ok(())
}

/// What the three tensors beside the weights say, with `input` transposed if the batch comes first.
pub fn call_with(
    problem: &Recurrent,
    tensors: &Tensors,
    weights: Vec<Weights<f32>>,
) -> Result<Call> {
    let optional = |name: &str| match tensors.contains_key(name) {
        true => Ok(Some(floats(tensors, name)?.to_vec())),
        false => Ok::<_, Error>(None),
    };
    let input = match problem.batch_first {
        true => get(tensors, "input")?.permuted(&[1, 0, 2]).into_f32(),
        false => floats(tensors, "input")?.to_vec(),
    };
    Ok(Call {
        input,
        weights,
        h_0: optional("h_0")?,
        c_0: optional("c_0")?,
        lengths: lengths(
            tensors,
            "lengths",
            problem.shape.batch,
            problem.shape.seq_len,
        )?,
        upstream: upstream(problem, tensors)?,
    })
}

pub fn call(problem: &Recurrent, tensors: &Tensors) -> Result<Call> {
    let directions = problem.config.direction.count();
    let weights = (0..problem.config.num_layers * directions).map(|i| {
        let suffix = suffix(i / directions, i % directions);
        let take =
            |stem: &str| -> Result<_> { Ok(floats(tensors, &format!("{stem}{suffix}"))?.to_vec()) };
        let bias = |stem| match problem.bias {
            true => take(stem),
            false => Ok(Vec::new()),
        };
        Ok::<_, Error>(Weights {
            weight_ih: take("weight_ih")?,
            weight_hh: take("weight_hh")?,
            bias_ih: bias("bias_ih")?,
            bias_hh: bias("bias_hh")?,
            peephole: Vec::new(),
            weight_hr: match problem.config.proj_size {
                Some(_) => take("weight_hr")?,
                None => Vec::new(),
            },
        })
    });
    call_with(problem, tensors, weights.collect::<Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_layer_and_direction() {
        assert_eq!(parameter("weight_ih_l0"), Some(("weight_ih", 0, 0)));
        assert_eq!(parameter("bias_hh_l12_reverse"), Some(("bias_hh", 12, 1)));
        for name in [
            "weight_ih",
            "weight_ih_l",
            "weight_ih_l+1",
            "weight_ih_l01",
            "weight_ih_l-1",
            "weight_xx_l0",
            "weight_ih_l0_back",
            "weight_ih_l99999999999",
        ] {
            assert_eq!(parameter(name), None, "{name}");
        }
    }
}
