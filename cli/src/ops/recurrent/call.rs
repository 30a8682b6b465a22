//! The tensors of a call in PyTorch's layout, and how a format's tensors are looked at.

use gatefold::reference::recurrent::{
    Gradients, Initial, Output, Problem, Upstream, Weights, recurrent, recurrent_backward,
};
use gatefold::reference::{Real, convert};

use crate::error::{Error, Result};
use crate::tensors::{Tensors, floats, get, integers, mismatch};

/// `input` is `[seq_len, batch, input_size]`; weights lie at `layer * num_directions + direction`.
pub struct Call {
    pub input: Vec<f32>,
    pub weights: Vec<Weights<f32>>,
    pub h_0: Option<Vec<f32>>,
    pub c_0: Option<Vec<f32>>,
    pub lengths: Option<Vec<u32>>,
    /// The gradients that arrive, of output, h_n and c_n.
    pub upstream: [Option<Vec<f32>>; 3],
}

impl Call {
    pub fn reference<R: Real>(&self, problem: &Problem) -> Output<R> {
        let weights: Vec<_> = self.weights.iter().map(Weights::convert).collect();
        let state = |x: &Option<Vec<f32>>| x.as_ref().map(|x| convert::<R>(x));
        let (h_0, c_0) = (state(&self.h_0), state(&self.c_0));
        let initial = Initial {
            h_0: h_0.as_deref(),
            c_0: c_0.as_deref(),
            lengths: self.lengths.as_deref(),
        };
        recurrent(problem, &convert(&self.input), &weights, initial)
    }

    /// The gradients and their magnitudes.
    pub fn gradients<R: Real>(&self, problem: &Problem) -> [Gradients<R>; 2] {
        let weights: Vec<_> = self.weights.iter().map(Weights::convert).collect();
        let optional = |x: &Option<Vec<f32>>| x.as_ref().map(|x| convert::<R>(x));
        let (h_0, c_0) = (optional(&self.h_0), optional(&self.c_0));
        let initial = Initial {
            h_0: h_0.as_deref(),
            c_0: c_0.as_deref(),
            lengths: self.lengths.as_deref(),
        };
        let [output, h_n, c_n] = self.upstream.each_ref().map(optional);
        let upstream = Upstream {
            output: output.as_deref(),
            h_n: h_n.as_deref(),
            c_n: c_n.as_deref(),
        };
        recurrent_backward(problem, &convert(&self.input), &weights, initial, upstream)
    }
}

/// The axes of a tensor of floats that has `N` of them, all below 2^32.
pub fn axes<const N: usize>(tensors: &Tensors, name: &str, wanted: &str) -> Result<[u32; N]> {
    let shape: Result<Vec<u32>, _> = get(tensors, name)?
        .shape
        .iter()
        .map(|&len| u32::try_from(len))
        .collect();
    let shape = shape.map_err(|_| mismatch(tensors, name, "axes below 2^32"))?;
    let shape = shape
        .try_into()
        .map_err(|_| mismatch(tensors, name, wanted))?;
    floats(tensors, name)?;
    Ok(shape)
}

/// seq_len, batch and input_size of the input `name`.
pub fn sequence(tensors: &Tensors, name: &str, batch_first: bool) -> Result<[u32; 3]> {
    let [seq_len, batch, input_size] = match batch_first {
        true => {
            let [batch, seq_len, size] = axes(tensors, name, "[batch, seq_len, input_size]")?;
            [seq_len, batch, size]
        }
        false => axes(tensors, name, "[seq_len, batch, input_size]")?,
    };
    at_least_one(tensors, name, "input_size", input_size)?;
    Ok([seq_len, batch, input_size])
}

/// A tensor of floats of exactly this shape; `wanted` says it in words.
pub fn expect(tensors: &Tensors, name: &str, shape: &[u32], wanted: &str) -> Result<()> {
    let found = get(tensors, name)?.shape.iter().copied();
    if found.ne(shape.iter().map(|&len| len as usize)) {
        return Err(mismatch(tensors, name, &format!("{wanted} = {shape:?}")));
    }
    floats(tensors, name)?;
    Ok(())
}

/// Refuses an axis of length 0 that must not be.
pub fn at_least_one(tensors: &Tensors, name: &str, axis: &str, len: u32) -> Result<()> {
    match len {
        0 => Err(mismatch(tensors, name, &format!("{axis} of at least 1"))),
        _ => Ok(()),
    }
}

/// Refuses a name that is not `known`.
pub fn only(tensors: &Tensors, op: &str, known: impl Fn(&str) -> bool, words: &str) -> Result<()> {
    let unknown = tensors.keys().find(|name| !known(name));
    unknown.map_or(Ok(()), |name| {
        Err(Error::usage(format_args!(
            "{name}: unknown tensor; {op} reads {words}"
        )))
    })
}

/// Lengths of sequences, 0 to `seq_len`, if the tensor is there.
pub fn lengths(
    tensors: &Tensors,
    name: &str,
    batch: u32,
    seq_len: u32,
) -> Result<Option<Vec<u32>>> {
    if !tensors.contains_key(name) {
        return Ok(None);
    }
    let values = integers(tensors, name)?;
    if get(tensors, name)?.shape != [batch as usize] {
        return Err(mismatch(tensors, name, &format!("[batch] = [{batch}]")));
    }
    let each = |(at, &length): (usize, &i64)| match u32::try_from(length) {
        Ok(length) if length <= seq_len => Ok(length),
        _ => Err(Error::usage(format_args!(
            "{name}: element {at} is {length}, expected 0 to seq_len = {seq_len}"
        ))),
    };
    values
        .iter()
        .enumerate()
        .map(each)
        .collect::<Result<_>>()
        .map(Some)
}

/// Blocks of `values`, one per gate, in another order: block `i` of the result is block `order[i]`.
pub fn reorder(values: &[f32], order: &[usize]) -> Vec<f32> {
    let block = values.len() / order.len();
    let blocks = order.iter().map(|&from| &values[from * block..][..block]);
    blocks.collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_reordered_in_blocks() {
        assert_eq!(
            reorder(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[1, 0, 2]),
            [2.0, 3.0, 0.0, 1.0, 4.0, 5.0]
        );
        assert!(reorder(&[], &[1, 0, 2]).is_empty());
    }
}
