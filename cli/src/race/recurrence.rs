//! RNN, LSTM and GRU as contestants: one layer, forward, from a state of zeros.

use std::ops::Range;

use gatefold::kernel::Dispatch;
use gatefold::reference::Real;
use gatefold::reference::compare::{Difference, Tolerance, compare};
use gatefold::reference::recurrent::{self as reference, Initial, Problem, Weights};
use gatefold::{
    Cell, Direction, Recurrent, RecurrentBuffers, RecurrentConfig, RecurrentShape,
    RecurrentWeights, wgpu,
};
use serde_json::{Value, json};

use super::Contestant;
use super::course::{Course, Entry, Facts, Random};
use crate::error::Result;

/// Steps from the start that are compared with the reference: it takes as long as many runs of the kernel.
const HEAD: usize = 256;
/// Steps before the end that are compared too.
const TAIL: usize = 32;
/// Steps that the reference runs from a state of zeros before the tail: by then these weights have
/// forgotten which state it was, to less than f32 can hold.
const WARM_UP: usize = 192;

pub struct Recurrence {
    cell: Cell,
    operation: Recurrent,
    weights: Weights<f32>,
    packed: wgpu::Buffer,
    /// The outputs of the steps from the start, of each judged sequence.
    head: Option<(Vec<f64>, Vec<f32>)>,
}

impl Recurrence {
    pub fn new(course: &Course, cell: Cell) -> Result<Self> {
        let config = RecurrentConfig {
            cell,
            input_size: course.width,
            hidden_size: course.width,
            ..Default::default()
        };
        let operation = Recurrent::new(course.gpu.context(), config)?;
        let weights = weights(cell, course.width as usize);
        let packed = pack(course, &operation, &weights)?;
        Ok(Self {
            cell,
            operation,
            weights,
            packed,
            head: None,
        })
    }

    /// The output of `steps` of the judged sequences, of which those from `first` on are kept.
    fn expected<R: Real>(&self, course: &Course, first: usize, steps: Range<usize>) -> Vec<R> {
        let width = course.width as usize;
        let problem = Problem {
            cell: self.cell,
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
            seq_len: steps.len(),
            batch: 1,
        };
        let weights = self.weights.convert();
        let zeros = Initial {
            h_0: None,
            c_0: None,
            lengths: None,
        };
        let sequences = course.judged().into_iter();
        sequences
            .flat_map(|sequence| {
                let input: Vec<R> = course.tokens(sequence, steps.clone());
                let weights = std::slice::from_ref(&weights);
                let all = reference::recurrent(&problem, &input, weights, zeros).output;
                all[(first - steps.start) * width..].to_vec()
            })
            .collect()
    }

    fn compare(
        &self,
        course: &Course,
        steps: Range<usize>,
        got: &[f32],
        (truth, yardstick): (&[f64], &[f32]),
    ) -> Result<f64, Difference> {
        let judged = course.judged();
        let shape = [judged.len(), steps.len(), course.width as usize];
        let got: Vec<f32> = judged
            .into_iter()
            .flat_map(|sequence| course.pick(got, sequence, steps.clone()))
            .collect();
        let tolerance = Tolerance::RECURRENT;
        let agreement = compare("output", &shape, &got, truth, yardstick, tolerance)?;
        Ok(agreement.error)
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
        let (width, seq_len) = (course.width as usize, seq_len as usize);
        let most = HEAD.min(course.longest as usize);
        let (truth, yardstick) = match self.head.take() {
            Some(head) => head,
            None => (
                self.expected(course, 0, 0..most),
                self.expected(course, 0, 0..most),
            ),
        };
        let len = seq_len.min(HEAD);
        let expected = (
            &*first_of_each(&truth, most * width, len * width),
            &*first_of_each(&yardstick, most * width, len * width),
        );
        let compared = self.compare(course, 0..len, got, expected);
        self.head = Some((truth, yardstick));
        let mut worst = compared?;
        if seq_len > HEAD {
            let tail = seq_len.saturating_sub(TAIL).max(HEAD);
            let steps = tail - WARM_UP..seq_len;
            let truth = self.expected(course, tail, steps.clone());
            let yardstick = self.expected(course, tail, steps);
            let error = self.compare(course, tail..seq_len, got, (&truth, &yardstick))?;
            worst = f64::max(worst, error);
        }
        Ok(worst)
    }
}

fn first_of_each<R: Real>(values: &[R], each: usize, len: usize) -> Vec<R> {
    let parts = values.chunks_exact(each);
    parts.flat_map(|part| &part[..len]).copied().collect()
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
    use super::*;

    /// What the judgement of a tail builds on.
    #[test]
    fn the_state_is_forgotten_within_the_warm_up() {
        let width = 24;
        for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru] {
            let problem = Problem {
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
                seq_len: WARM_UP + TAIL,
                batch: 1,
            };
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
