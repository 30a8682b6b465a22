//! ONNX's names, layouts and gate orders: `X W R B sequence_lens initial_h initial_c P`.

use gatefold::reference::recurrent::Weights;
use gatefold::{Cell, Given, RecurrentConfig, RecurrentShape};

use super::call::{Call, at_least_one, axes, expect, lengths, only, reorder, sequence};
use super::gradients::{arriving, is_arriving, joined, upstream};
use super::options::{Direction, Format, RunOptions, config};
use super::pytorch::suffix;
use super::{Op, Recurrent};
use crate::args::RunCommon;
use crate::error::{Error, Result};
use crate::tensors::{Tensors, floats, get, mismatch};

const KNOWN: [&str; 8] = [
    "X",
    "W",
    "R",
    "B",
    "sequence_lens",
    "initial_h",
    "initial_c",
    "P",
];

/// PyTorch's gate `i` is ONNX's gate `order[i]`: i o f c become i f g o, and z r h become r z n.
fn order(cell: Cell) -> &'static [usize] {
    match cell {
        Cell::RnnTanh | Cell::RnnRelu => &[0],
        Cell::Lstm | Cell::LstmCoupled => &[0, 2, 3, 1],
        Cell::Gru | Cell::GruResetBefore => &[1, 0, 2],
    }
}

pub fn problem(
    op: Op,
    common: &RunCommon,
    options: &RunOptions,
    tensors: &Tensors,
) -> Result<Recurrent> {
    let known: &[&str] = match op {
        Op::Lstm => &KNOWN,
        _ => &KNOWN[..6],
    };
    let reads = |name: &str| known.contains(&name) || is_arriving(op, Format::Onnx, name);
    let what = format!("{} --format onnx", op.name());
    only(tensors, &what, reads, &known.join(", "))?;
    let base = config(op, common, options, false)?;
    let direction = options.direction.unwrap_or(Direction::Forward).of_library();
    let [seq_len, batch, input_size] = sequence(tensors, "X", options.batch_first)?;
    let (gates, count) = (base.cell.num_gates(), direction.count());
    let recurrent = format!("[{count}, {gates} * hidden_size, hidden_size]");
    let [_, rows, hidden_size] = axes(tensors, "R", &recurrent)?;
    at_least_one(tensors, "R", "hidden_size", hidden_size)?;
    if u64::from(rows) != u64::from(gates) * u64::from(hidden_size) {
        return Err(mismatch(tensors, "R", &recurrent));
    }
    expect(tensors, "R", &[count, rows, hidden_size], &recurrent)?;
    let words = format!("[{count}, {gates} * hidden_size, input_size]");
    expect(tensors, "W", &[count, rows, input_size], &words)?;
    let problem = Recurrent {
        op,
        config: RecurrentConfig {
            input_size,
            hidden_size,
            direction,
            peephole: tensors.contains_key("P"),
            ..base
        },
        shape: RecurrentShape {
            seq_len,
            batch,
            seed: options.seed,
        },
        given: Given {
            h_0: tensors.contains_key("initial_h"),
            c_0: tensors.contains_key("initial_c"),
            lengths: tensors.contains_key("sequence_lens"),
            h_n: true,
            c_n: op == Op::Lstm,
            reserve: common.grad,
        },
        grad: common.grad,
        arriving: arriving(op, Format::Onnx, common.grad, tensors)?,
        bias: tensors.contains_key("B"),
        format: Format::Onnx,
        batch_first: options.batch_first,
    };
    optional(&problem, tensors)?;
    upstream(&problem, tensors)?;
    Ok(problem)
}

/// `B`, `P`, the states and the lengths, where they are given.
fn optional(problem: &Recurrent, tensors: &Tensors) -> Result<()> {
    let RecurrentShape { seq_len, batch, .. } = problem.shape;
    let (count, hidden_size) = (problem.config.direction.count(), problem.config.hidden_size);
    let gates = problem.config.cell.num_gates();
    if tensors.contains_key("B") {
        let words = format!("[{count}, 2 * {gates} * hidden_size]");
        expect(tensors, "B", &[count, 2 * gates * hidden_size], &words)?;
    }
    if tensors.contains_key("P") {
        let words = format!("[{count}, 3 * hidden_size]");
        expect(tensors, "P", &[count, 3 * hidden_size], &words)?;
    }
    let (shape, words) = match problem.batch_first {
        true => (
            [batch, count, hidden_size],
            "[batch, directions, hidden_size]",
        ),
        false => (
            [count, batch, hidden_size],
            "[directions, batch, hidden_size]",
        ),
    };
    for name in ["initial_h", "initial_c"] {
        if tensors.contains_key(name) {
            expect(tensors, name, &shape, words)?;
        }
    }
    lengths(tensors, "sequence_lens", batch, seq_len)?;
    Ok(())
}

pub fn call(problem: &Recurrent, tensors: &Tensors) -> Result<Call> {
    let Recurrent { config, shape, .. } = problem;
    let order = order(config.cell);
    let swapped = |name: &str| match problem.batch_first {
        true => Ok(get(tensors, name)?.permuted(&[1, 0, 2]).into_f32()),
        false => Ok::<_, Error>(floats(tensors, name)?.to_vec()),
    };
    let optional = |name: &str| {
        let given = tensors.contains_key(name);
        given.then(|| swapped(name)).transpose()
    };
    let count = config.direction.count() as usize;
    let weights = (0..count).map(|direction| {
        let own = |name: &str| {
            let all = floats(tensors, name)?;
            let each = all.len() / count;
            Ok::<_, Error>(&all[direction * each..][..each])
        };
        let (bias_ih, bias_hh) = match problem.bias {
            true => {
                let both = own("B")?;
                both.split_at(both.len() / 2)
            }
            false => (&[][..], &[][..]),
        };
        Ok::<_, Error>(Weights {
            weight_ih: reorder(own("W")?, order),
            weight_hh: reorder(own("R")?, order),
            bias_ih: reorder(bias_ih, order),
            bias_hh: reorder(bias_hh, order),
            // i o f become i f o
            peephole: match config.peephole {
                true => reorder(own("P")?, &[0, 2, 1]),
                false => Vec::new(),
            },
            weight_hr: Vec::new(),
        })
    });
    Ok(Call {
        input: swapped("X")?,
        weights: weights.collect::<Result<_>>()?,
        h_0: optional("initial_h")?,
        c_0: optional("initial_c")?,
        lengths: lengths(tensors, "sequence_lens", shape.batch, shape.seq_len)?,
        upstream: upstream(problem, tensors)?,
    })
}

/// `grad_X grad_W grad_R grad_B grad_P grad_initial_h grad_initial_c` from gradients in the library's layout.
pub fn gradients(problem: &Recurrent, mut tensors: Tensors) -> Result<Tensors> {
    let p = problem.reference();
    let count = p.direction.count() as usize;
    let (rows, hidden) = (p.cell.num_gates() as usize * p.hidden_size, p.hidden_size);
    let order = order(p.cell);
    let of_each = |stems: &[&str]| -> Vec<String> {
        let each = |direction: usize| {
            let suffix = suffix(0, direction as u32);
            stems.iter().map(move |stem| format!("grad_{stem}{suffix}"))
        };
        (0..count).flat_map(each).collect()
    };
    for (stems, name, shape, order) in [
        (
            &["weight_ih"][..],
            "grad_W",
            vec![count, rows, p.input_size],
            order,
        ),
        (&["weight_hh"], "grad_R", vec![count, rows, hidden], order),
        (
            &["bias_ih", "bias_hh"],
            "grad_B",
            vec![count, 2 * rows],
            order,
        ),
        (&["peephole"], "grad_P", vec![count, 3 * hidden], &[0, 2, 1]),
    ] {
        let names = of_each(stems);
        if tensors.contains_key(&names[0]) {
            let tensor = joined(&mut tensors, &names, order, &shape)?;
            tensors.insert(name.to_owned(), tensor);
        }
    }
    for (from, to) in [
        ("grad_input", "grad_X"),
        ("grad_h_0", "grad_initial_h"),
        ("grad_c_0", "grad_initial_c"),
    ] {
        if let Some(tensor) = tensors.remove(from) {
            tensors.insert(to.to_owned(), tensor);
        }
    }
    Ok(tensors)
}
