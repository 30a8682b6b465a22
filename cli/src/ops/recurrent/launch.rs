//! The tensors of a problem on a device, bound.

use gatefold::{
    Gpu, Recurrent as Operation, RecurrentBackwardBuffers, RecurrentBuffers, RecurrentGradients,
    RecurrentWeights, Variant, wgpu,
};

use super::call::Call;
use super::wanted::Wanted;
use super::{Recurrent, gradients};
use crate::error::Result;
use crate::ops::launch::Output;
use crate::ops::{Launch, Problem, slice, upload};
use crate::tensors::{Tensors, floats};

impl Recurrent {
    /// A tensor as the device reads it: as it is given, under one of these names, or with its time first.
    fn placed<'a>(
        &self,
        inputs: &'a Tensors,
        names: &[&str],
        time_first: Option<&'a [f32]>,
    ) -> Option<&'a [f32]> {
        match self.config.batch_first {
            true => names.iter().find_map(|name| floats(inputs, name).ok()),
            false => time_first,
        }
    }

    /// Buffers for what is wanted, of which the first has a time, and a batch that may be in front of it.
    fn outputs(&self, gpu: &Gpu, mut wanted: Vec<Wanted>) -> Result<Vec<Output>> {
        if self.config.batch_first {
            wanted[0] = wanted[0].in_place();
        }
        wanted
            .into_iter()
            .map(|wanted| Output::permuted(gpu, wanted.name, &wanted.shape, wanted.order))
            .collect()
    }
}

pub fn launch(
    problem: &Recurrent,
    gpu: &Gpu,
    variant: Option<Variant>,
    inputs: &Tensors,
) -> Result<Launch> {
    let plan = problem.plan(gpu.context().capabilities(), variant)?;
    let op = Operation::new(gpu.context(), problem.forced(variant))?;
    let call = problem.call(inputs)?;
    let packed = pack(gpu, &op, &call)?;
    let input = problem.placed(inputs, &["input", "X"], Some(&call.input));
    let input = problem.config.element.words(input.unwrap_or_default());
    let input = gpu.upload("input", &input)?;
    let h_0 = upload(gpu, "h_0", call.h_0.as_deref())?;
    let c_0 = upload(gpu, "c_0", call.c_0.as_deref())?;
    let lengths = upload(gpu, "lengths", call.lengths.as_deref())?;
    let poisoned = |name: &str, size: u64| {
        // empty buffers cannot be bound
        let poison = vec![f32::NAN; (size as usize / 4).max(1)];
        gpu.upload(name, &poison)
    };
    let scratch = poisoned("scratch", plan.scratch_size)?;
    let reserve = match problem.grad {
        true => Some(poisoned("reserve", op.reserve_size(problem.shape)?)?),
        false => None,
    };
    let mut outputs = problem.outputs(gpu, problem.forward_outputs())?;
    let buffers = RecurrentBuffers {
        h_0: slice(&h_0),
        c_0: slice(&c_0),
        lengths: slice(&lengths),
        h_n: Some(outputs[1].slice()),
        c_n: outputs.get(2).map(Output::slice),
        reserve: slice(&reserve),
        ..RecurrentBuffers::new(
            input.slice(..),
            packed.slice(..),
            outputs[0].slice(),
            scratch.slice(..),
        )
    };
    let mut bounds = vec![op.bind(problem.shape, buffers)?];
    let Some(reserve) = reserve else {
        return Ok(Launch::new(plan, bounds, outputs));
    };
    let gradients = problem.outputs(gpu, gradients::wanted(problem))?;
    let [grad_output, grad_h_n, grad_c_n] = call.upstream.each_ref().map(Option::as_deref);
    let names = gradients::arriving_names(problem.format)[0];
    let arriving = [
        upload(
            gpu,
            "grad_output",
            problem.placed(inputs, names, grad_output),
        )?,
        upload(gpu, "grad_h_n", grad_h_n)?,
        upload(gpu, "grad_c_n", grad_c_n)?,
    ];
    let [grad_output, grad_h_n, grad_c_n] = arriving.each_ref().map(Option::as_ref);
    let mut slices = gradients.iter().map(Output::slice);
    let mut next = |wanted: bool| wanted.then(|| slices.next()).flatten();
    let grad_input = next(true);
    let (grad_h_0, grad_c_0) = (next(problem.given.h_0), next(problem.given.c_0));
    let grad_norms = next(true);
    let mut grad_weights = Vec::new();
    while let (Some(weight_ih), Some(weight_hh)) = (next(true), next(true)) {
        grad_weights.push(RecurrentGradients {
            weight_ih,
            weight_hh,
            bias: next(problem.bias).zip(next(problem.bias)),
            peephole: next(problem.config.peephole),
            weight_hr: next(problem.config.proj_size.is_some()),
        });
    }
    let buffers = RecurrentBackwardBuffers {
        lengths: slice(&lengths),
        grad_output: grad_output.map(|buffer| buffer.slice(..)),
        grad_h_n: grad_h_n.map(|buffer| buffer.slice(..)),
        grad_c_n: grad_c_n.map(|buffer| buffer.slice(..)),
        grad_input,
        grad_h_0,
        grad_c_0,
        grad_weights: &grad_weights,
        grad_norms,
        ..RecurrentBackwardBuffers::new(
            input.slice(..),
            packed.slice(..),
            reserve.slice(..),
            scratch.slice(..),
        )
    };
    bounds.push(op.bind_backward(problem.shape, buffers)?);
    drop(grad_weights);
    outputs.extend(gradients);
    let problem = *problem;
    let finish = move |tensors| gradients::of_format(&problem, tensors);
    Ok(Launch::new(plan, bounds, outputs).finished_by(finish))
}

/// The weights on the device, in the kernels' layout.
fn pack(gpu: &Gpu, op: &Operation, call: &Call) -> Result<wgpu::Buffer> {
    let mut buffers = Vec::new();
    for weights in &call.weights {
        let element = op.config().weights;
        let upload = |values: &[f32]| gpu.upload("weights", &element.words(values));
        buffers.push([
            upload(&weights.weight_ih)?,
            upload(&weights.weight_hh)?,
            upload(&weights.bias_ih)?,
            upload(&weights.bias_hh)?,
            upload(&weights.peephole)?,
            upload(&weights.weight_hr)?,
        ]);
    }
    let mut given = Vec::new();
    for (buffers, weights) in buffers.iter().zip(&call.weights) {
        let [weight_ih, weight_hh, bias_ih, bias_hh, peephole, weight_hr] =
            buffers.each_ref().map(|x| x.slice(..));
        given.push(RecurrentWeights {
            weight_ih,
            weight_hh,
            bias: (!weights.bias_ih.is_empty()).then_some((bias_ih, bias_hh)),
            peephole: (!weights.peephole.is_empty()).then_some(peephole),
            weight_hr: (!weights.weight_hr.is_empty()).then_some(weight_hr),
        });
    }
    let packed = gpu.zeros("packed", op.packed_size())?;
    gpu.run(|pass| op.pack_weights(pass, &given, packed.slice(..)))?;
    Ok(packed)
}
