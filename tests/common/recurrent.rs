//! Cases of recurrence: inputs, the kernels' run of them, the reference's.

use std::collections::HashSet;

use gatefold::reference::compare::{Tolerance, compare};
use gatefold::reference::recurrent::{self as reference, Initial, Problem, Weights};
use gatefold::reference::{Real, convert};
use gatefold::{
    Activations, Cell, Direction, ElementType, Given, Gpu, Recurrent, RecurrentBuffers,
    RecurrentConfig, RecurrentShape, RecurrentWeights, Tier, Variant,
};

use super::{Output, Random, bits, gpu, guises};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub cell: Cell,
    pub batch_first: bool,
    /// How the input and the weights are stored.
    pub elements: [ElementType; 2],
    pub input_size: u32,
    pub hidden_size: u32,
    pub proj_size: Option<u32>,
    pub num_layers: u32,
    pub dropout: f32,
    pub direction: Direction,
    pub clip: Option<f32>,
    pub truncate: Option<u32>,
    pub checkpoint_every: Option<u32>,
    pub seq_len: u32,
    pub batch: u32,
    pub bias: bool,
    pub peephole: bool,
    pub activations: Option<[Activations; 2]>,
    /// Whether h_0 (and c_0 of an LSTM) are given.
    pub states: bool,
    pub lengths: Option<&'static [u32]>,
    /// Of the weights, relative to 1 / sqrt(hidden_size).
    pub magnitude: f32,
}

pub const SMALL: Case = Case {
    cell: Cell::Lstm,
    batch_first: false,
    elements: [ElementType::F32; 2],
    input_size: 7,
    hidden_size: 13,
    proj_size: None,
    num_layers: 1,
    dropout: 0.0,
    direction: Direction::Forward,
    clip: None,
    truncate: None,
    checkpoint_every: None,
    seq_len: 9,
    batch: 3,
    bias: true,
    peephole: false,
    activations: None,
    states: true,
    lengths: None,
    magnitude: 1.5,
};

/// Of the dropout; both halves count.
const SEED: u64 = 0x1234_5678_9abc_def1;

pub struct Inputs {
    pub input: Vec<f32>,
    pub weights: Vec<Weights<f32>>,
    pub h_0: Vec<f32>,
    pub c_0: Vec<f32>,
}

/// output, h_n and, of an LSTM, c_n
pub type Results = Vec<Vec<f32>>;

impl Case {
    pub fn config(&self, tier: Option<Tier>, variant: Option<Variant>) -> RecurrentConfig {
        RecurrentConfig {
            cell: self.cell,
            element: self.elements[0],
            weights: self.elements[1],
            batch_first: self.batch_first,
            input_size: self.input_size,
            hidden_size: self.hidden_size,
            proj_size: self.proj_size,
            num_layers: self.num_layers,
            direction: self.direction,
            peephole: self.peephole,
            dropout: self.dropout,
            activations: self.activations,
            clip: self.clip,
            spin_bound: None,
            truncate: self.truncate,
            checkpoint_every: self.checkpoint_every,
            gradients: false,
            tier,
            variant,
        }
    }

    pub fn shape(&self) -> RecurrentShape {
        RecurrentShape {
            seq_len: self.seq_len,
            batch: self.batch,
            seed: SEED,
        }
    }

    pub fn given(&self) -> Given {
        let c = self.cell.has_cell_state();
        Given {
            h_0: self.states,
            c_0: self.states && c,
            lengths: self.lengths.is_some(),
            h_n: true,
            c_n: c,
            reserve: false,
        }
    }

    pub fn problem(&self) -> Problem {
        Problem {
            cell: self.cell,
            input_size: self.input_size as usize,
            hidden_size: self.hidden_size as usize,
            proj_size: self.proj_size.map(|size| size as usize),
            num_layers: self.num_layers as usize,
            direction: self.direction,
            dropout: self.dropout,
            seed: SEED,
            activations: self.activations,
            clip: self.clip,
            truncate: self.truncate.map(|steps| steps as usize),
            seq_len: self.seq_len as usize,
            batch: self.batch as usize,
        }
    }

    pub fn inputs(&self) -> Inputs {
        let p = self.problem();
        let mut random = Random::new(0xfeed ^ u64::from(self.seq_len * 1009 + self.hidden_size));
        let directions = self.direction.count() as usize;
        let gate_rows = self.cell.num_gates() as usize * p.hidden_size;
        let scale = self.magnitude / (p.hidden_size as f32).sqrt();
        let states = p.num_layers * directions * p.batch;
        let width = p.state_size();
        let projection = p.proj_size.map_or(0, |size| size * p.hidden_size);
        let bias = if self.bias { gate_rows } else { 0 };
        let peepholes = if self.peephole { 3 * p.hidden_size } else { 0 };
        let [of_input, of_weights] = self.elements;
        let round =
            |x: Vec<f32>, to: ElementType| x.into_iter().map(|x| to.round(x)).collect::<Vec<_>>();
        let weights = (0..p.num_layers * directions)
            .map(|i| {
                let input_size = if i < directions {
                    p.input_size
                } else {
                    directions * width
                };
                Weights {
                    weight_ih: round(random.normals(gate_rows * input_size, scale), of_weights),
                    weight_hh: round(random.normals(gate_rows * width, scale), of_weights),
                    bias_ih: round(random.normals(bias, 0.5), of_weights),
                    bias_hh: round(random.normals(bias, 0.5), of_weights),
                    peephole: round(random.normals(peepholes, 0.8), of_weights),
                    weight_hr: round(random.normals(projection, scale), of_weights),
                }
            })
            .collect();
        Inputs {
            input: round(
                random.normals(p.seq_len * p.batch * p.input_size, 1.0),
                of_input,
            ),
            weights,
            h_0: random.normals(states * width, 0.5),
            c_0: random.normals(states * p.hidden_size, 1.0),
        }
    }
}

impl Inputs {
    pub fn reference<R: Real>(&self, case: &Case) -> reference::Output<R> {
        let weights: Vec<_> = self.weights.iter().map(Weights::convert).collect();
        let (h_0, c_0) = (convert::<R>(&self.h_0), convert::<R>(&self.c_0));
        let initial = Initial {
            h_0: case.states.then_some(&h_0[..]),
            c_0: case.states.then_some(&c_0[..]),
            lengths: case.lengths,
        };
        reference::recurrent(&case.problem(), &convert(&self.input), &weights, initial)
    }
}

/// The weights of a case on the device, packed.
pub fn pack(gpu: &Gpu, op: &Recurrent, inputs: &Inputs) -> wgpu::Buffer {
    let buffers: Vec<_> = inputs
        .weights
        .iter()
        .map(|w| {
            [
                &w.weight_ih,
                &w.weight_hh,
                &w.bias_ih,
                &w.bias_hh,
                &w.peephole,
                &w.weight_hr,
            ]
            .map(|x| {
                gpu.upload("weights", &op.config().weights.words(x))
                    .unwrap()
            })
        })
        .collect();
    let has_bias = inputs.weights.iter().all(|w| !w.bias_ih.is_empty());
    let weights: Vec<_> = buffers
        .iter()
        .map(
            |[weight_ih, weight_hh, bias_ih, bias_hh, peephole, weight_hr]| RecurrentWeights {
                weight_ih: weight_ih.slice(..),
                weight_hh: weight_hh.slice(..),
                bias: has_bias.then(|| (bias_ih.slice(..), bias_hh.slice(..))),
                peephole: op.config().peephole.then(|| peephole.slice(..)),
                weight_hr: op.config().proj_size.map(|_| weight_hr.slice(..)),
            },
        )
        .collect();
    let packed = gpu.zeros("packed", op.packed_size()).unwrap();
    gpu.run(|pass| op.pack_weights(pass, &weights, packed.slice(..)))
        .unwrap();
    packed
}

/// Runs the case twice, on scratch full of NaN.
pub fn run(gpu: &Gpu, case: &Case, config: RecurrentConfig, inputs: &Inputs) -> Results {
    run_with(gpu, case, config, inputs, false)
}

/// [`run`] that leaves what a backward pass would need, and uses no scratch without checkpoints.
pub fn run_keeping(gpu: &Gpu, case: &Case, config: RecurrentConfig, inputs: &Inputs) -> Results {
    run_with(gpu, case, config, inputs, true)
}

fn run_with(
    gpu: &Gpu,
    case: &Case,
    config: RecurrentConfig,
    inputs: &Inputs,
    keep: bool,
) -> Results {
    let op = Recurrent::new(gpu.context(), config).unwrap();
    let packed = pack(gpu, &op, inputs);
    let input = config.element.words(&placed(case, &inputs.input));
    let input = gpu.upload("input", &input).unwrap();
    let h_0 = gpu.upload("h_0", &inputs.h_0).unwrap();
    let c_0 = gpu.upload("c_0", &inputs.c_0).unwrap();
    let lengths = gpu.upload("lengths", case.lengths.unwrap_or(&[0])).unwrap();
    let tokens = (case.seq_len * case.batch * case.direction.count()) as usize;
    let output = tokens * case.problem().state_size();
    let outputs = [output, inputs.h_0.len(), inputs.c_0.len()].map(|len| Output::new(gpu, len));
    let scratch_size = match keep && case.checkpoint_every.is_none() {
        true => 4,
        false => op.scratch_size(case.shape()).unwrap(),
    };
    let scratch = Output::new(gpu, scratch_size as usize / 4);
    let reserve = match keep {
        true => op.reserve_size(case.shape()).unwrap(),
        false => 4,
    };
    let reserve = Output::new(gpu, reserve as usize / 4);
    let is_lstm = case.cell.has_cell_state();
    let buffers = RecurrentBuffers {
        h_0: case.states.then(|| h_0.slice(..)),
        c_0: (case.states && is_lstm).then(|| c_0.slice(..)),
        lengths: case.lengths.map(|_| lengths.slice(..)),
        h_n: Some(outputs[1].buffer.slice(..)),
        c_n: is_lstm.then(|| outputs[2].buffer.slice(..)),
        reserve: keep.then(|| reserve.buffer.slice(..)),
        ..RecurrentBuffers::new(
            input.slice(..),
            packed.slice(..),
            outputs[0].buffer.slice(..),
            scratch.buffer.slice(..),
        )
    };
    let bound = op.bind(case.shape(), buffers).unwrap();
    let outputs = &outputs[..if is_lstm { 3 } else { 2 }];
    let once = || -> Results {
        outputs
            .iter()
            .chain([&scratch, &reserve])
            .for_each(|output| output.poison(gpu));
        gpu.run(|pass| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
        scratch.read(gpu);
        reserve.read(gpu);
        let mut results: Results = outputs.iter().map(|output| output.read(gpu)).collect();
        results[0] = fetched(case, &results[0]);
        results
    };
    let [first, second] = [once(), once()];
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(bits(first), bits(second), "two runs");
    }
    first
}

/// `[seq_len, batch, width]` as the device has it.
pub fn placed(case: &Case, values: &[f32]) -> Vec<f32> {
    match case.batch_first {
        true => swapped(values, case.seq_len as usize, case.batch as usize),
        false => values.to_vec(),
    }
}

/// What the device has as `[seq_len, batch, width]`.
pub fn fetched(case: &Case, values: &[f32]) -> Vec<f32> {
    match case.batch_first {
        true => swapped(values, case.batch as usize, case.seq_len as usize),
        false => values.to_vec(),
    }
}

/// `[a, b, width]` as `[b, a, width]`.
fn swapped(values: &[f32], a: usize, b: usize) -> Vec<f32> {
    let width = values.len() / (a * b).max(1);
    let rows = (0..b).flat_map(|j| (0..a).map(move |i| (i * b + j) * width));
    rows.flat_map(|at| &values[at..at + width])
        .copied()
        .collect()
}

/// Every tier and variant of every guise of a device that runs this case in a way of its own.
pub fn variants(guises: &[Gpu], case: &Case) -> Vec<(Gpu, RecurrentConfig, String)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for guise in guises {
        let capabilities = *guise.context().capabilities();
        let any = case.config(None, None);
        for variant in any.variants(&capabilities) {
            let in_variant = case.config(None, Some(variant));
            for tier in in_variant.tiers(&capabilities, case.batch) {
                let config = case.config(Some(tier), Some(variant));
                let plan = config
                    .plan(&capabilities, case.shape(), case.given())
                    .unwrap();
                let forms = plan
                    .dispatches
                    .iter()
                    .map(|d| (d.kernel.clone(), d.constants.clone(), d.grid));
                if seen.insert(forms.collect::<Vec<_>>()) {
                    found.push((
                        guise.clone(),
                        config,
                        format!("{variant}, {}", plan.describe),
                    ));
                }
            }
        }
    }
    found
}

/// Compares every tier and variant of every guise of the device with the reference.
pub fn check(case: Case) {
    if let Some(gpu) = gpu() {
        check_on(&guises(gpu), case);
    }
}

/// Compares every tier and variant of `guises` with the reference.
pub fn check_on(guises: &[Gpu], case: Case) {
    check_inputs(guises, case, &case.inputs());
}

/// The same with inputs of the test's own.
pub fn check_inputs(guises: &[Gpu], case: Case, inputs: &Inputs) {
    let truths = (inputs.reference(&case), inputs.reference(&case));
    for (guise, config, how) in variants(guises, &case) {
        let results = run(&guise, &case, config, inputs);
        let tolerance = Tolerance::recurrent(config.variant.unwrap_or(Variant::Portable));
        judge_by(&truths, tolerance, &guise, &case, &results, &how);
    }
}

/// Compares results with the reference.
pub fn judge(gpu: &Gpu, case: &Case, inputs: &Inputs, results: &Results, how: &str) {
    let truths = (inputs.reference(case), inputs.reference(case));
    judge_by(&truths, Tolerance::RECURRENT, gpu, case, results, how);
}

fn judge_by(
    (truth, yardstick): &(reference::Output<f64>, reference::Output<f32>),
    tolerance: Tolerance,
    gpu: &Gpu,
    case: &Case,
    results: &Results,
    how: &str,
) {
    let (hidden, state) = (case.hidden_size as usize, case.problem().state_size());
    let width = state * case.direction.count() as usize;
    let judged = [
        ("output", width, &truth.output, &yardstick.output),
        ("h_n", state, &truth.h_n, &yardstick.h_n),
        ("c_n", hidden, &truth.c_n, &yardstick.c_n),
    ];
    for ((name, row, truth, yardstick), got) in judged.into_iter().zip(results) {
        let shape = [truth.len() / row, row];
        if let Err(difference) = compare(name, &shape, got, truth, yardstick, tolerance) {
            panic!("{difference}\n{how}\n{case:?}\n{}", gpu.describe());
        }
    }
}
