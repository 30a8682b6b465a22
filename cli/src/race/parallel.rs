//! minGRU and minLSTM as contestants: recurrences whose gates do not look at the state, so that all steps are
//! computed at once.

use std::ops::Range;

use gatefold::kernel::Dispatch;
use gatefold::reference::Real;
use gatefold::reference::compare::Difference;
use gatefold::reference::min_recurrent::{
    Optional, Weights, min_recurrent, min_recurrent_backward,
};
use gatefold::{
    MinCell, MinRecurrent, MinRecurrentBackwardBuffers, MinRecurrentBackwardGiven,
    MinRecurrentBuffers, MinRecurrentConfig, MinRecurrentGiven, MinRecurrentShape,
    MinRecurrentWeights, wgpu,
};
use serde_json::{Value, json};

use super::Contestant;
use super::course::{Course, Entry, Facts, Random};
use super::windows::{Reference, Windows, check_gradients};
use crate::error::Result;

pub struct Parallel {
    operation: MinRecurrent,
    weights: Weights<f32>,
    packed: wgpu::Buffer,
    windows: Windows,
}

impl Parallel {
    pub fn new(course: &Course, cell: MinCell) -> Result<Self> {
        let config = MinRecurrentConfig {
            cell,
            input_size: course.width,
            hidden_size: course.width,
            ..Default::default()
        };
        let operation = MinRecurrent::new(course.gpu.context(), config)?;
        let weights = weights(cell, course.width as usize);
        let packed = pack(course, &operation, &weights)?;
        Ok(Self {
            operation,
            weights,
            packed,
            windows: Windows::default(),
        })
    }

    fn shape(course: &Course, seq_len: u32) -> MinRecurrentShape {
        MinRecurrentShape {
            seq_len,
            batch: course.batch,
        }
    }
}

fn name(cell: MinCell) -> &'static str {
    match cell {
        MinCell::Gru => "mingru",
        MinCell::Lstm => "minlstm",
    }
}

/// As PyTorch initialises a linear layer.
fn weights(cell: MinCell, width: usize) -> Weights<f32> {
    let mut random = Random::new(name(cell));
    let rows = cell.num_gates() as usize * width;
    let bound = 1.0 / (width as f32).sqrt();
    Weights {
        weight: random.uniform(rows * width, bound),
        bias: random.uniform(rows, bound),
    }
}

fn pack(course: &Course, operation: &MinRecurrent, weights: &Weights<f32>) -> Result<wgpu::Buffer> {
    let gpu = &course.gpu;
    let weight = gpu.upload("weight", &weights.weight)?;
    let bias = gpu.upload("bias", &weights.bias)?;
    let given = MinRecurrentWeights {
        weight: weight.slice(..),
        bias: Some(bias.slice(..)),
    };
    let packed = gpu.zeros("packed weights", operation.packed_size())?;
    gpu.run(|pass| operation.pack_weights(pass, &[given], packed.slice(..)))?;
    Ok(packed)
}

fn zeros<'a, R>() -> Optional<'a, R> {
    Optional {
        h_0: None,
        lengths: None,
    }
}

/// Of one sequence.
fn alone(steps: &Range<usize>) -> MinRecurrentShape {
    MinRecurrentShape {
        seq_len: steps.len() as u32,
        batch: 1,
    }
}

impl Reference for Parallel {
    fn expected<R: Real>(&self, course: &Course, first: usize, steps: Range<usize>) -> Vec<R> {
        let (width, config) = (course.width as usize, self.operation.config());
        let weights = [self.weights.convert()];
        let sequences = course.judged().into_iter();
        sequences
            .flat_map(|sequence| {
                let input: Vec<R> = course.tokens(sequence, steps.clone());
                let all = min_recurrent(config, alone(&steps), &input, &weights, zeros()).output;
                all[(first - steps.start) * width..].to_vec()
            })
            .collect()
    }

    fn gradients<R: Real>(&self, course: &Course, first: usize, steps: Range<usize>) -> Vec<R> {
        let (width, config) = (course.width as usize, self.operation.config());
        let weights = [self.weights.convert()];
        let no_grad = vec![R::ZERO; width];
        let sequences = course.judged().into_iter();
        sequences
            .flat_map(|sequence| {
                let input: Vec<R> = course.tokens(sequence, steps.clone());
                let grad: Vec<R> = course.gradients(sequence, steps.clone());
                let shape = alone(&steps);
                let optional = zeros();
                let all = min_recurrent_backward(
                    config, shape, &input, &weights, optional, &grad, &no_grad,
                );
                all.input[(first - steps.start) * width..].to_vec()
            })
            .collect()
    }
}

impl Contestant for Parallel {
    fn op(&self) -> &'static str {
        name(self.operation.config().cell)
    }

    fn order(&self) -> i32 {
        1
    }

    fn shape(&self, course: &Course, seq_len: u32) -> Vec<(&'static str, Value)> {
        vec![
            ("batch", json!(course.batch)),
            ("seq_len", json!(seq_len)),
            ("input_size", json!(course.width)),
            ("hidden_size", json!(course.width)),
            ("layers", json!(1)),
        ]
    }

    fn enter(&self, course: &Course, seq_len: u32) -> Result<Entry> {
        let shape = Self::shape(course, seq_len);
        let operation = &self.operation;
        let plan = operation.plan(shape, MinRecurrentGiven::default())?;
        let output = course.output(seq_len)?;
        let scratch = course.gpu.zeros("scratch", plan.scratch_size)?;
        let (input, weights) = (course.input.slice(..), self.packed.slice(..));
        let buffers = MinRecurrentBuffers::new(input, weights, output.slice(), scratch.slice(..));
        let whole = operation.bind(shape, buffers)?;
        let memory_bytes =
            course.size(seq_len, 2 * course.width) + operation.packed_size() + plan.scratch_size;
        let mut facts = Facts {
            variant: plan.variant.to_string(),
            tier: None,
            kernel: plan.describe,
            flops: plan.flops,
            bytes: plan.bytes,
            memory_bytes,
        };
        if course.projections {
            return Ok(Entry::whole(facts, output, vec![whole]));
        }
        let timed = operation.bind_scan(shape, buffers)?;
        let is_projection = |dispatch: &&Dispatch| dispatch.kernel.name.starts_with("gemm");
        let segments = plan.dispatches.iter().filter(is_projection).count();
        let gates = operation.config().cell.num_gates() * course.width;
        facts.flops = 2.0 * f64::from(course.rows(seq_len)) * f64::from(course.width);
        facts.bytes = course.size(seq_len, gates + course.width) as f64;
        Ok(Entry {
            facts,
            output,
            before: vec![whole],
            timed: vec![timed],
            // of a long sequence, only the gates of its last segment are still there
            timed_is_whole: segments == 1,
        })
    }

    fn check(&mut self, course: &Course, seq_len: u32, got: &[f32]) -> Result<f64, Difference> {
        let mut windows = std::mem::take(&mut self.windows);
        let checked = windows.check(self, course, seq_len, got);
        self.windows = windows;
        checked
    }

    fn enter_training(&self, course: &Course, seq_len: u32) -> Result<Option<Entry>> {
        let (gpu, operation) = (&course.gpu, &self.operation);
        let shape = Self::shape(course, seq_len);
        let given = MinRecurrentGiven {
            reserve: true,
            ..Default::default()
        };
        let given_backward = MinRecurrentBackwardGiven {
            grad_output: true,
            grad_input: true,
            ..Default::default()
        };
        let plan = operation.plan(shape, given)?;
        let plan = plan.then(operation.plan_backward(shape, given_backward)?);
        let reserve_size = operation.reserve_size(shape)?;
        let gradient_size = operation.config().gradient_size();
        let scratch = gpu.zeros("scratch", plan.scratch_size)?;
        let reserve = gpu.zeros("reserve", reserve_size)?;
        let grad_weights = gpu.zeros("gradients of the weights", gradient_size)?;
        let (output, grad_input) = (course.output(seq_len)?, course.output(seq_len)?);
        let (input, packed) = (course.input.slice(..), self.packed.slice(..));
        let buffers = MinRecurrentBuffers {
            reserve: Some(reserve.slice(..)),
            ..MinRecurrentBuffers::new(input, packed, output.slice(), scratch.slice(..))
        };
        let forward = operation.bind(shape, buffers)?;
        let buffers = MinRecurrentBackwardBuffers {
            grad_output: Some(course.grad_output.slice(..)),
            grad_input: Some(grad_input.slice()),
            ..MinRecurrentBackwardBuffers::new(
                input,
                packed,
                output.slice(),
                reserve.slice(..),
                grad_weights.slice(..),
                scratch.slice(..),
            )
        };
        let backward = operation.bind_backward(shape, buffers)?;
        // input, output and their gradients; the weights and theirs
        let memory_bytes = course.size(seq_len, 4 * course.width)
            + operation.packed_size()
            + gradient_size
            + reserve_size
            + plan.scratch_size;
        let facts = Facts {
            variant: plan.variant.to_string(),
            tier: None,
            kernel: plan.describe,
            flops: plan.flops,
            bytes: plan.bytes,
            memory_bytes,
        };
        Ok(Some(Entry::whole(
            facts,
            grad_input,
            vec![forward, backward],
        )))
    }

    fn check_training(
        &mut self,
        course: &Course,
        seq_len: u32,
        got: &[f32],
    ) -> Result<f64, Difference> {
        check_gradients(self, course, seq_len, got)
    }
}

#[cfg(test)]
mod tests {
    use super::super::windows::{TAIL, WARM_UP};
    use super::*;

    /// What the judgement of a tail builds on.
    #[test]
    fn the_state_is_forgotten_within_the_warm_up() {
        let width = 24;
        for cell in [MinCell::Gru, MinCell::Lstm] {
            let config = MinRecurrentConfig {
                cell,
                input_size: width as u32,
                hidden_size: width as u32,
                ..Default::default()
            };
            let weights = [weights(cell, width).convert::<f64>()];
            let steps = 0..WARM_UP + TAIL;
            let input = Random::new("input").uniform(steps.len() * width, 3.0_f32.sqrt());
            let input = gatefold::reference::convert(&input);
            let ones = vec![1.0; width];
            let from = |h_0: Option<&[f64]>| {
                let optional = Optional { h_0, lengths: None };
                min_recurrent(&config, alone(&steps), &input, &weights, optional).output
            };
            let (zeros, ones) = (from(None), from(Some(&ones)));
            let tail = WARM_UP * width..;
            let pairs = zeros[tail.clone()].iter().zip(&ones[tail]);
            let worst = pairs.fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 1e-9, "{cell:?}: {worst:e}");
        }
    }
}
