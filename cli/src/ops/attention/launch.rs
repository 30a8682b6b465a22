//! A call with its tensors on a device.

use gatefold::{
    Attention as Operation, AttentionBackwardBuffers, AttentionBuffers, AttentionWeightsBuffers,
    Gpu, Variant, wgpu,
};

use super::Attention;
use crate::error::Result;
use crate::ops::launch::{Launch, Output};
use crate::tensors::{Data, Tensors, floats, get, integers};

/// The inputs that the problem has.
struct Uploaded {
    tensors: Vec<(&'static str, wgpu::Buffer)>,
}

impl Uploaded {
    fn new(problem: &Attention, gpu: &Gpu, inputs: &Tensors) -> Result<Self> {
        let (shape, config) = (&problem.shape, &problem.config);
        let mut tensors = Vec::new();
        for name in super::INPUTS {
            let words = config.element.words(floats(inputs, name)?);
            tensors.push((name, gpu.upload(name, &words)?));
        }
        if let Some(element) = config.bias {
            let words = element.words(floats(inputs, "bias")?);
            tensors.push(("bias", gpu.upload("bias", &words)?));
        }
        if config.mask {
            let mut bytes: Vec<u8> = match &get(inputs, "mask")?.data {
                Data::Bool(mask) => mask.iter().map(|&allowed| allowed.into()).collect(),
                _ => Vec::new(),
            };
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            tensors.push(("mask", gpu.upload("mask", &bytes)?));
        }
        for (name, given) in [("alibi_slopes", config.alibi), ("sinks", config.sinks)] {
            if given {
                tensors.push((name, gpu.upload(name, floats(inputs, name)?)?));
            }
        }
        for (name, given) in [
            ("kv_lengths", problem.kv_lengths),
            ("cu_seqlens_q", shape.packed.is_some()),
            ("cu_seqlens_k", shape.packed.is_some()),
            ("block_table", shape.paged.is_some()),
        ] {
            if given {
                let words = integers(inputs, name)?.iter();
                // a page that no key needs may have any number, -1 for instance
                let words: Vec<u32> = words.map(|&x| u32::try_from(x).unwrap_or(0)).collect();
                tensors.push((name, gpu.upload(name, &words)?));
            }
        }
        Ok(Self { tensors })
    }

    fn get(&self, name: &str) -> Option<wgpu::BufferSlice<'_>> {
        let found = self.tensors.iter().find(|(other, _)| *other == name)?;
        Some(found.1.slice(..))
    }

    fn buffers<'a>(
        &'a self,
        output: &'a Output,
        log_sum_exp: &'a Output,
        scratch: &'a wgpu::Buffer,
    ) -> AttentionBuffers<'a> {
        let [query, key, value] = [0, 1, 2].map(|i| self.tensors[i].1.slice(..));
        AttentionBuffers {
            bias: self.get("bias"),
            mask: self.get("mask"),
            kv_lengths: self.get("kv_lengths"),
            alibi_slopes: self.get("alibi_slopes"),
            sinks: self.get("sinks"),
            cu_seqlens: self.get("cu_seqlens_q").zip(self.get("cu_seqlens_k")),
            block_table: self.get("block_table"),
            scratch: Some(scratch.slice(..)),
            ..AttentionBuffers::new(query, key, value, output.slice())
        }
        .log_sum_exp(log_sum_exp.slice())
    }
}

pub fn launch(
    problem: &Attention,
    gpu: &Gpu,
    variant: Option<Variant>,
    inputs: &Tensors,
) -> Result<Launch> {
    let config = problem.forced(variant);
    let shape = problem.shape;
    let plan = crate::ops::Problem::plan(problem, gpu.context().capabilities(), variant)?;
    let op = Operation::new(gpu.context(), config)?;
    let uploaded = Uploaded::new(problem, gpu, inputs)?;
    let poison = vec![f32::NAN; plan.scratch_size.max(4) as usize / 4];
    let scratch = gpu.upload("scratch", &poison)?;
    let [.., dims] = problem.dims();
    let mut outputs = vec![
        Output::new(gpu, "output", &dims)?,
        Output::new(gpu, "log_sum_exp", &problem.log_sum_exp_dims())?,
    ];
    if let Some(chosen) = problem.weights {
        let dims = problem.weights_dims(chosen);
        outputs.push(Output::new(gpu, "weights", &dims)?);
    }
    if problem.grad {
        for (name, dims) in problem.gradients() {
            outputs.push(Output::new(gpu, name, &dims)?);
        }
    }
    let forward = uploaded.buffers(&outputs[0], &outputs[1], &scratch);
    let slice = |name| {
        outputs
            .iter()
            .find(|output| output.name() == name)
            .map(Output::slice)
    };
    let mut bounds = vec![op.bind(shape, forward)?];
    if let Some((chosen, weights)) = problem.weights.zip(slice("weights")) {
        let buffers = AttentionWeightsBuffers { forward, weights };
        bounds.push(op.bind_weights(shape, chosen, buffers)?);
    }
    if let (Some(grad_query), Some(grad_key), Some(grad_value)) =
        (slice("grad_query"), slice("grad_key"), slice("grad_value"))
    {
        let grad_output = gpu.upload("grad_output", floats(inputs, "grad_output")?)?;
        let buffers = AttentionBackwardBuffers {
            forward,
            grad_output: grad_output.slice(..),
            grad_query,
            grad_key,
            grad_value,
            grad_bias: slice("grad_bias"),
            grad_sinks: slice("grad_sinks"),
        };
        bounds.push(op.bind_backward(shape, buffers)?);
    }
    Ok(Launch::new(plan, bounds, outputs))
}
