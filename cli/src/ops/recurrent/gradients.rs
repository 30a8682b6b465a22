//! Gradients under the names and in the layouts of each format.
//!
//! The library has them in PyTorch's: `grad_input` `[seq_len, batch, input_size]`, `grad_h_0`, `grad_c_0`,
//! `grad_norms` and `grad_weight_ih_l0` and so on.

use gatefold::reference::recurrent::{Gradients, Weights};

use super::options::Format;
use super::{Op, Recurrent, Wanted, keras, onnx, pytorch};
use crate::error::{Error, Result};
use crate::tensors::{Data, Tensor, Tensors, get, mismatch};

/// What the gradients that arrive are called, in the order output, h_n, c_n.
pub fn arriving_names(format: Format) -> [&'static [&'static str]; 3] {
    match format {
        Format::Onnx => [
            &["grad_Y", "grad_output"],
            &["grad_Y_h", "grad_h_n"],
            &["grad_Y_c", "grad_c_n"],
        ],
        _ => [&["grad_output"], &["grad_h_n"], &["grad_c_n"]],
    }
}

/// Whether a tensor of this name is a gradient that arrives.
pub fn is_arriving(op: Op, format: Format, name: &str) -> bool {
    let count = if op == Op::Lstm { 3 } else { 2 };
    let names = arriving_names(format).into_iter().take(count);
    names.flatten().any(|&known| known == name)
}

/// Which of the three are there; refused without `--grad`, and if none is there with it.
pub fn arriving(op: Op, format: Format, grad: bool, tensors: &Tensors) -> Result<[bool; 3]> {
    let names = arriving_names(format);
    let mut given = [false; 3];
    for (given, names) in given.iter_mut().zip(names) {
        let mut found = names.iter().filter(|&&name| tensors.contains_key(name));
        let (first, second) = (found.next(), found.next());
        if let (Some(first), Some(second)) = (first, second) {
            return Err(Error::usage(format_args!(
                "{first} and {second} are the same; give one"
            )));
        }
        if let (Some(first), false) = (first, grad) {
            return Err(Error::usage(format_args!("{first}: is read with --grad")));
        }
        *given = first.is_some();
    }
    if grad && given == [false; 3] {
        let count = if op == Op::Lstm { 3 } else { 2 };
        let names: Vec<&str> = names.iter().take(count).map(|names| names[0]).collect();
        return Err(Error::usage(format_args!(
            "--grad: one of {} must be there",
            names.join(", ")
        )));
    }
    Ok(given)
}

/// Checks the gradients that arrive, each in the shape of its output, and returns them in the library's layout.
pub fn upstream(problem: &Recurrent, tensors: &Tensors) -> Result<[Option<Vec<f32>>; 3]> {
    let mut found = [None, None, None];
    let outputs = problem.forward_outputs();
    for ((found, names), wanted) in found
        .iter_mut()
        .zip(arriving_names(problem.format))
        .zip(&outputs)
    {
        let Some(name) = names.iter().find(|&&name| tensors.contains_key(name)) else {
            continue;
        };
        let tensor = get(tensors, name)?;
        let shape = wanted.handed_shape();
        if tensor.shape != shape {
            let wanted = format!("that of {}, {shape:?}", wanted.name);
            return Err(mismatch(tensors, name, &wanted));
        }
        crate::tensors::floats(tensors, name)?;
        *found = Some(wanted.undone(tensor).into_f32());
    }
    Ok(found)
}

/// Every gradient that the device writes, in the order of [`flat`].
pub fn wanted(problem: &Recurrent) -> Vec<Wanted> {
    let p = problem.reference();
    let directions = p.direction.count() as usize;
    let count = p.num_layers * directions;
    let (hidden, state) = (p.hidden_size, p.state_size());
    let rows = p.cell.num_gates() as usize * hidden;
    let swapped = |batch_first: bool, name: &str, shape: [usize; 3]| {
        let plain = Wanted::plain(name, &shape);
        match batch_first {
            true => Wanted {
                order: &[1, 0, 2],
                ..plain
            },
            false => plain,
        }
    };
    let input = [p.seq_len, p.batch, p.input_size];
    let mut all = vec![swapped(problem.batch_first, "grad_input", input)];
    let states = problem.batch_first && problem.format == Format::Onnx;
    if problem.given.h_0 {
        all.push(swapped(states, "grad_h_0", [count, p.batch, state]));
    }
    if problem.given.c_0 {
        all.push(swapped(states, "grad_c_0", [count, p.batch, hidden]));
    }
    all.push(Wanted::plain("grad_norms", &[count, p.seq_len]));
    for at in 0..count {
        let suffix = pytorch::suffix((at / directions) as u32, (at % directions) as u32);
        let width = match at / directions {
            0 => p.input_size,
            _ => directions * state,
        };
        let mut add = |stem: &str, shape: &[usize]| {
            all.push(Wanted::plain(format!("grad_{stem}{suffix}"), shape));
        };
        add("weight_ih", &[rows, width]);
        add("weight_hh", &[rows, state]);
        if problem.bias {
            add("bias_ih", &[rows]);
            add("bias_hh", &[rows]);
        }
        if problem.config.peephole {
            add("peephole", &[3 * hidden]);
        }
        if problem.config.proj_size.is_some() {
            add("weight_hr", &[state, hidden]);
        }
    }
    all
}

/// The reference's gradients in the order of [`wanted`].
pub fn flat<R>(problem: &Recurrent, gradients: Gradients<R>) -> Vec<Vec<R>> {
    let mut all = vec![gradients.input];
    if problem.given.h_0 {
        all.push(gradients.h_0);
    }
    if problem.given.c_0 {
        all.push(gradients.c_0);
    }
    all.push(gradients.norms);
    for weights in gradients.weights {
        let Weights {
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
            peephole,
            weight_hr,
        } = weights;
        all.extend([weight_ih, weight_hh]);
        if problem.bias {
            all.extend([bias_ih, bias_hh]);
        }
        if problem.config.peephole {
            all.push(peephole);
        }
        if problem.config.proj_size.is_some() {
            all.push(weight_hr);
        }
    }
    all
}

/// Gradients, named as in [`wanted`], as the format has them; other tensors stay as they are.
pub fn of_format(problem: &Recurrent, tensors: Tensors) -> Result<Tensors> {
    match problem.format {
        Format::Pytorch => Ok(tensors),
        Format::Keras => keras::gradients(problem, tensors),
        Format::Onnx => onnx::gradients(problem, tensors),
    }
}

/// Some tensors of one length, taken out, with their gates put back in the format's order (block `i` becomes block
/// `order[i]`), one behind the other.
pub fn joined(
    tensors: &mut Tensors,
    names: &[String],
    order: &[usize],
    shape: &[usize],
) -> Result<Tensor> {
    fn restored<T: Copy>(values: &[T], order: &[usize], to: &mut Vec<T>) {
        let block = values.len() / order.len();
        for gate in 0..order.len() {
            // every number below the count is in an order
            let from = order.iter().position(|&at| at == gate).unwrap_or(gate);
            to.extend_from_slice(&values[from * block..][..block]);
        }
    }
    let (mut f32s, mut f64s) = (Vec::new(), Vec::new());
    for name in names {
        match &get(tensors, name)?.data {
            Data::F32(values) => restored(values, order, &mut f32s),
            Data::F64(values) => restored(values, order, &mut f64s),
            _ => {}
        }
        tensors.remove(name);
    }
    Ok(match f64s.is_empty() {
        true => Tensor::f32(shape, f32s),
        false => Tensor::f64(shape, f64s),
    })
}
