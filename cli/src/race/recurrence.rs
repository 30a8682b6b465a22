//! RNN, LSTM and GRU as contestants: one layer, forward, from a state of zeros.

use std::ops::Range;

use gatefold::kernel::Dispatch;
use gatefold::reference::Real;
use gatefold::reference::compare::Difference;
use gatefold::reference::recurrent::{
    self as reference, Initial, Problem, Upstream, Weights, recurrent_backward,
};
use gatefold::{
    Cell, Direction, Given, Recurrent, RecurrentBackwardBuffers, RecurrentBackwardGiven,
    RecurrentBuffers, RecurrentConfig, RecurrentGradients, RecurrentShape, RecurrentWeights, wgpu,
};
use serde_json::{Value, json};

use super::Contestant;
use super::course::{Course, Entry, Facts, Random};
use super::windows::{Reference, Windows, check_gradients};
use crate::error::Result;

pub struct Recurrence {
    cell: Cell,
    operation: Recurrent,
    weights: Weights<f32>,
    packed: wgpu::Buffer,
    windows: Windows,
}

impl Recurrence {
    pub fn new(course: &Course, cell: Cell) -> Result<Self> {
        let config = Self::config(cell, course);
        let operation = Recurrent::new(course.gpu.context(), config)?;
        let weights = weights(cell, course.width as usize);
        let packed = pack(course, &operation, &weights)?;
        Ok(Self {
            cell,
            operation,
            weights,
            packed,
            windows: Windows::default(),
        })
    }

    fn problem(&self, course: &Course, steps: &Range<usize>) -> Problem {
        let width = course.width as usize;
        problem(self.cell, width, steps.len())
    }

    fn config(cell: Cell, course: &Course) -> RecurrentConfig {
        RecurrentConfig {
            cell,
            input_size: course.width,
            hidden_size: course.width,
            ..Default::default()
        }
    }
}

fn problem(cell: Cell, width: usize, seq_len: usize) -> Problem {
    Problem {
        cell,
        input_size: width,
        hidden_size: width,
        proj_size: None,
        num_layers: 1,
        direction: Direction::Forward,
        dropout: 0.0,
        seed: 0,
        activations: None,
        clip: None,
        truncate: None,
        seq_len,
        batch: 1,
    }
}

fn zeros<'a, R>() -> Initial<'a, R> {
    Initial {
        h_0: None,
        c_0: None,
        lengths: None,
    }
}

impl Reference for Recurrence {
    fn expected<R: Real>(&self, course: &Course, first: usize, steps: Range<usize>) -> Vec<R> {
        let width = course.width as usize;
        let problem = self.problem(course, &steps);
        let weights = [self.weights.convert()];
        let sequences = course.judged().into_iter();
        sequences
            .flat_map(|sequence| {
                let input: Vec<R> = course.tokens(sequence, steps.clone());
                let all = reference::recurrent(&problem, &input, &weights, zeros()).output;
                all[(first - steps.start) * width..].to_vec()
            })
            .collect()
    }

    fn gradients<R: Real>(&self, course: &Course, first: usize, steps: Range<usize>) -> Vec<R> {
        let width = course.width as usize;
        let problem = self.problem(course, &steps);
        let weights = [self.weights.convert()];
        let sequences = course.judged().into_iter();
        sequences
            .flat_map(|sequence| {
                let input: Vec<R> = course.tokens(sequence, steps.clone());
                let grad: Vec<R> = course.gradients(sequence, steps.clone());
                let upstream = Upstream {
                    output: Some(&grad[..]),
                    h_n: None,
                    c_n: None,
                };
                let [gradients, _] =
                    recurrent_backward(&problem, &input, &weights, zeros(), upstream);
                gradients.input[(first - steps.start) * width..].to_vec()
            })
            .collect()
    }
}

impl Contestant for Recurrence {
    fn op(&self) -> &'static str {
        name(self.cell)
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
        let shape = RecurrentShape {
            seq_len,
            batch: course.batch,
            seed: 0,
        };
        let plan = self.operation.plan(shape, Default::default())?;
        let output = course.output(seq_len)?;
        let scratch = course.gpu.zeros("scratch", plan.scratch_size)?;
        let (input, weights) = (course.input.slice(..), self.packed.slice(..));
        let buffers = RecurrentBuffers::new(input, weights, output.slice(), scratch.slice(..));
        let whole = self.operation.bind(shape, buffers)?;
        let memory_bytes = course.size(seq_len, 2 * course.width)
            + self.operation.packed_size()
            + plan.scratch_size;
        let mut facts = Facts {
            variant: plan.variant.to_string(),
            tier: plan.describe.split(',').next().map(str::to_owned),
            kernel: plan.describe,
            flops: plan.flops,
            bytes: plan.bytes,
            memory_bytes,
        };
        if course.projections {
            return Ok(Entry::whole(facts, output, vec![whole]));
        }
        let gates = self.cell.num_gates() * course.width;
        let timed = self.operation.bind_steps(shape, buffers)?;
        let is_projection = |dispatch: &&Dispatch| dispatch.kernel.name.starts_with("gemm");
        let chunks = plan.dispatches.iter().filter(is_projection).count();
        facts.flops /= 2.0;
        facts.bytes = 4.0 * f64::from(gates) * f64::from(course.width)
            + course.size(seq_len, gates + course.width) as f64;
        Ok(Entry {
            facts,
            output,
            before: vec![whole],
            timed: vec![timed],
            // of a long sequence, only the gates of its last chunk are still there
            timed_is_whole: chunks == 1,
        })
    }

    fn check(&mut self, course: &Course, seq_len: u32, got: &[f32]) -> Result<f64, Difference> {
        let mut windows = std::mem::take(&mut self.windows);
        let checked = windows.check(self, course, seq_len, got);
        self.windows = windows;
        checked
    }

    fn enter_training(&self, course: &Course, seq_len: u32) -> Result<Option<Entry>> {
        let gpu = &course.gpu;
        let shape = RecurrentShape {
            seq_len,
            batch: course.batch,
            seed: 0,
        };
        let config = RecurrentConfig {
            gradients: true,
            ..Self::config(self.cell, course)
        };
        let operation = Recurrent::new(gpu.context(), config)?;
        let packed = pack(course, &operation, &self.weights)?;
        let given = Given {
            reserve: true,
            ..Default::default()
        };
        let given_backward = RecurrentBackwardGiven {
            grad_output: true,
            grad_input: true,
            parameters: true,
            bias: true,
            ..Default::default()
        };
        let forward = operation.plan(shape, given)?;
        let tier = forward.describe.split(',').next().map(str::to_owned);
        let plan = forward.then(operation.plan_backward(shape, given_backward)?);
        let (reserve_size, scratch_size) = (
            operation.reserve_size(shape)?,
            operation
                .backward_scratch_size(shape)?
                .max(plan.scratch_size),
        );
        let buffer = |name, size: u64| gpu.zeros(name, size.max(4));
        let scratch = buffer("scratch", scratch_size)?;
        let reserve = buffer("reserve", reserve_size)?;
        let rows = u64::from(self.cell.num_gates()) * u64::from(course.width);
        let weight_size = 4 * rows * u64::from(course.width);
        let weights = [weight_size, weight_size, 4 * rows, 4 * rows]
            .map(|size| buffer("gradient of a weight", size));
        let [weight_ih, weight_hh, bias_ih, bias_hh] = weights;
        let (weight_ih, weight_hh) = (weight_ih?, weight_hh?);
        let (bias_ih, bias_hh) = (bias_ih?, bias_hh?);
        let grad_weights = [RecurrentGradients {
            weight_ih: weight_ih.slice(..),
            weight_hh: weight_hh.slice(..),
            bias: Some((bias_ih.slice(..), bias_hh.slice(..))),
            peephole: None,
            weight_hr: None,
        }];
        let output = course.output(seq_len)?;
        let grad_input = course.output(seq_len)?;
        let (input, packed) = (course.input.slice(..), packed.slice(..));
        let buffers = RecurrentBuffers {
            reserve: Some(reserve.slice(..)),
            ..RecurrentBuffers::new(input, packed, output.slice(), scratch.slice(..))
        };
        let forward = operation.bind(shape, buffers)?;
        let buffers = RecurrentBackwardBuffers {
            grad_output: Some(course.grad_output.slice(..)),
            grad_input: Some(grad_input.slice()),
            grad_weights: &grad_weights,
            ..RecurrentBackwardBuffers::new(input, packed, reserve.slice(..), scratch.slice(..))
        };
        let backward = operation.bind_backward(shape, buffers)?;
        // input, output and their gradients; the weights and theirs
        let memory_bytes = course.size(seq_len, 4 * course.width)
            + operation.packed_size()
            + 2 * (weight_size + 4 * rows)
            + reserve_size
            + scratch_size;
        let facts = Facts {
            variant: plan.variant.to_string(),
            tier,
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

fn name(cell: Cell) -> &'static str {
    match cell {
        Cell::RnnTanh | Cell::RnnRelu => "rnn",
        Cell::Lstm | Cell::LstmCoupled => "lstm",
        Cell::Gru | Cell::GruResetBefore => "gru",
    }
}

/// As PyTorch initialises them.
fn weights(cell: Cell, width: usize) -> Weights<f32> {
    let mut random = Random::new(name(cell));
    let rows = cell.num_gates() as usize * width;
    let bound = 1.0 / (width as f32).sqrt();
    Weights {
        weight_ih: random.uniform(rows * width, bound),
        weight_hh: random.uniform(rows * width, bound),
        bias_ih: random.uniform(rows, bound),
        bias_hh: random.uniform(rows, bound),
        peephole: Vec::new(),
        weight_hr: Vec::new(),
    }
}

fn pack(course: &Course, operation: &Recurrent, weights: &Weights<f32>) -> Result<wgpu::Buffer> {
    let gpu = &course.gpu;
    let upload = |values: &[f32]| gpu.upload("weights", values);
    let (weight_ih, weight_hh) = (upload(&weights.weight_ih)?, upload(&weights.weight_hh)?);
    let (bias_ih, bias_hh) = (upload(&weights.bias_ih)?, upload(&weights.bias_hh)?);
    let given = RecurrentWeights {
        weight_ih: weight_ih.slice(..),
        weight_hh: weight_hh.slice(..),
        bias: Some((bias_ih.slice(..), bias_hh.slice(..))),
        peephole: None,
        weight_hr: None,
    };
    let packed = gpu.zeros("packed weights", operation.packed_size())?;
    gpu.run(|pass| operation.pack_weights(pass, &[given], packed.slice(..)))?;
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::super::windows::{TAIL, WARM_UP};
    use super::*;

    /// What the judgement of a tail builds on.
    #[test]
    fn the_state_is_forgotten_within_the_warm_up() {
        let width = 24;
        for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru] {
            let problem = problem(cell, width, WARM_UP + TAIL);
            let weights = weights(cell, width);
            let weights = weights.convert::<f64>();
            let input = Random::new("input").uniform((WARM_UP + TAIL) * width, 3.0_f32.sqrt());
            let ones = vec![1.0; width];
            let from = |state: Option<&[f64]>| {
                let initial = Initial {
                    h_0: state,
                    c_0: state.filter(|_| cell == Cell::Lstm),
                    lengths: None,
                };
                let weights = std::slice::from_ref(&weights);
                reference::recurrent(
                    &problem,
                    &gatefold::reference::convert(&input),
                    weights,
                    initial,
                )
                .output
            };
            let (zeros, ones) = (from(None), from(Some(&ones)));
            let tail = WARM_UP * width..;
            let pairs = zeros[tail.clone()].iter().zip(&ones[tail]);
            let worst = pairs.fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 1e-9, "{cell:?}: {worst:e}");
        }
    }
}
