//! The weights of some rows of a call, to be looked at.

use gatefold::{Chosen, Gpu};

use super::options::{RunOptions, ScoreOptions, problem_of};
use super::{Attention, launch};
use crate::error::{Error, Result};
use crate::ops::Problem;
use crate::tensors::{Tensor, Tensors, floats};

/// A call of which only weights are wanted.
pub struct Shown {
    call: Attention,
    tensors: Tensors,
}

/// The call that the flags and tensors describe; `value` may be missing.
pub fn shown(options: ScoreOptions, mut tensors: Tensors) -> Result<Shown> {
    if let (Some(key), false) = (tensors.get("key"), tensors.contains_key("value"))
        && let [batch, heads, len, _] = key.shape[..]
    {
        let value = Tensor {
            element: key.element,
            ..Tensor::f32(&[batch, heads, len, 1], vec![0.0; batch * heads * len])
        };
        tensors.insert("value".into(), value);
    }
    let options = RunOptions {
        scores: options,
        ..Default::default()
    };
    let call = problem_of(false, &options, &tensors)?;
    if call.shape.packed.is_some() {
        return Err(Error::usage(
            "cu_seqlens_q: packed sequences have no picture",
        ));
    }
    Ok(Shown { call, tensors })
}

impl Shown {
    /// Batch rows, query heads, queries and keys.
    pub fn lens(&self) -> [u32; 4] {
        let shape = &self.call.shape;
        [shape.batch, shape.num_heads, shape.q_len, shape.kv_len]
    }

    /// The weights of batch row `batch`, `[chosen heads, chosen rows, keys]`. What the reference can judge in a
    /// second is judged.
    pub fn weights(&mut self, gpu: &Gpu, batch: u32, chosen: Chosen) -> Result<Vec<f32>> {
        self.call.weights = Some(chosen);
        let launch = launch::launch(&self.call, gpu, None, &self.tensors)?;
        let got = launch.run(gpu)?;
        let judged = self.call.check(launch.plan.variant, &self.tensors, &got)?;
        judged.map_err(Error::failed)?;
        let dims = self.call.weights_dims(chosen);
        let len = dims[1..].iter().product::<usize>();
        Ok(floats(&got, "weights")?[batch as usize * len..][..len].to_vec())
    }
}
