//! Keras's names, layouts and gate orders: `kernel recurrent_kernel bias`, input `[batch, seq_len, input_size]`.

use gatefold::reference::recurrent::Weights;
use gatefold::{Cell, Given, RecurrentConfig, RecurrentShape};

use super::call::{Call, at_least_one, axes, expect, only, reorder, sequence};
use super::gradients::{arriving, is_arriving, joined, upstream};
use super::options::{Format, RunOptions, config};
use super::pytorch::{call_with, states};
use super::{Op, Recurrent};
use crate::args::RunCommon;
use crate::error::{Error, Result};
use crate::tensors::{Tensors, floats, get, mismatch};

const KNOWN: [&str; 7] = [
    "input",
    "kernel",
    "recurrent_kernel",
    "bias",
    "h_0",
    "lengths",
    "c_0",
];

/// PyTorch's gate `i` is Keras's gate `order[i]`: i f c o stay as they are, and z r h become r z n.
fn order(cell: Cell) -> &'static [usize] {
    match cell {
        Cell::RnnTanh | Cell::RnnRelu => &[0],
        Cell::Lstm | Cell::LstmCoupled => &[0, 1, 2, 3],
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
    let reads = |name: &str| known.contains(&name) || is_arriving(op, Format::Keras, name);
    let what = format!("{} --format keras", op.name());
    only(tensors, &what, reads, &known.join(", "))?;
    let by_bias = tensors.get("bias").map(|bias| bias.shape.len() == 2);
    let base = config(op, common, options, by_bias.unwrap_or(true))?;
    let [seq_len, batch, input_size] = sequence(tensors, "input", true)?;
    let gates = base.cell.num_gates();
    let wanted = format!("[hidden_size, {gates} * hidden_size]");
    let [hidden_size, rows] = axes(tensors, "recurrent_kernel", &wanted)?;
    at_least_one(tensors, "recurrent_kernel", "hidden_size", hidden_size)?;
    if u64::from(rows) != u64::from(gates) * u64::from(hidden_size) {
        return Err(mismatch(tensors, "recurrent_kernel", &wanted));
    }
    let wanted = format!("[input_size, {gates} * hidden_size]");
    expect(tensors, "kernel", &[input_size, rows], &wanted)?;
    if tensors.contains_key("bias") {
        // a GRU that resets after the product keeps the second bias apart
        let (shape, words): (&[u32], _) = match base.cell {
            Cell::Gru => (
                &[2, rows],
                "[2, 3 * hidden_size] with reset_after".to_owned(),
            ),
            Cell::GruResetBefore => (&[rows], "[3 * hidden_size] without reset_after".to_owned()),
            _ => (&[rows], format!("[{gates} * hidden_size]")),
        };
        expect(tensors, "bias", shape, &words)?;
    }
    let problem = Recurrent {
        op,
        config: RecurrentConfig {
            input_size,
            hidden_size,
            ..base
        },
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
        arriving: arriving(op, Format::Keras, common.grad, tensors)?,
        bias: tensors.contains_key("bias"),
        format: Format::Keras,
        batch_first: true,
    };
    states(&problem, tensors)?;
    upstream(&problem, tensors)?;
    Ok(problem)
}

pub fn call(problem: &Recurrent, tensors: &Tensors) -> Result<Call> {
    let order = order(problem.config.cell);
    let gates_first = |name: &str| {
        let transposed = get(tensors, name)?.permuted(&[1, 0]).into_f32();
        Ok::<_, Error>(reorder(&transposed, order))
    };
    let (mut bias_ih, mut bias_hh) = (Vec::new(), Vec::new());
    if problem.bias {
        let rows = problem.config.cell.num_gates() * problem.config.hidden_size;
        let (ih, hh) = floats(tensors, "bias")?.split_at(rows as usize);
        bias_ih = reorder(ih, order);
        // where there is one bias, it is added to the input's part
        bias_hh = match hh.is_empty() {
            true => vec![0.0; ih.len()],
            false => reorder(hh, order),
        };
    }
    let weights = Weights {
        weight_ih: gates_first("kernel")?,
        weight_hh: gates_first("recurrent_kernel")?,
        bias_ih,
        bias_hh,
        peephole: Vec::new(),
        weight_hr: Vec::new(),
    };
    call_with(problem, tensors, vec![weights])
}

/// `grad_kernel grad_recurrent_kernel grad_bias` from gradients in the library's layout.
pub fn gradients(problem: &Recurrent, mut tensors: Tensors) -> Result<Tensors> {
    let p = problem.reference();
    let rows = p.cell.num_gates() as usize * p.hidden_size;
    let order = order(p.cell);
    for (from, to, width) in [
        ("grad_weight_ih_l0", "grad_kernel", p.input_size),
        ("grad_weight_hh_l0", "grad_recurrent_kernel", p.hidden_size),
    ] {
        let tensor = joined(&mut tensors, &[from.to_owned()], order, &[rows, width])?;
        tensors.insert(to.to_owned(), tensor.permuted(&[1, 0]));
    }
    if problem.bias {
        let [ih, hh] = ["grad_bias_ih_l0", "grad_bias_hh_l0"].map(str::to_owned);
        let tensor = match p.cell {
            Cell::Gru => joined(&mut tensors, &[ih, hh], order, &[2, rows])?,
            // the second bias is none of Keras's
            _ => {
                tensors.remove(&hh);
                joined(&mut tensors, &[ih], order, &[rows])?
            }
        };
        tensors.insert("grad_bias".to_owned(), tensor);
    }
    Ok(tensors)
}
