//! Cases of minGRU and minLSTM: inputs, the kernels' run of them, the reference's.

use std::collections::HashSet;

use gatefold::reference::compare::{Tolerance, compare_with};
use gatefold::reference::min_recurrent::{self as reference, Optional, Weights};
use gatefold::reference::tracked::{Tracked, magnitudes};
use gatefold::reference::{Real, convert};
use gatefold::{
    Candidate, Gpu, MinCell, MinRecurrent, MinRecurrentBackwardBuffers, MinRecurrentBuffers,
    MinRecurrentConfig, MinRecurrentGiven, MinRecurrentShape, MinRecurrentWeights, Variant, wgpu,
};

use super::{Output, Random, bits, shared_guises};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub config: MinRecurrentConfig,
    pub seq_len: u32,
    pub batch: u32,
    pub bias: bool,
    pub states: bool,
    pub lengths: Option<&'static [u32]>,
    pub grad_output: bool,
    /// Of the weights, relative to 1 / sqrt(input_size).
    pub magnitude: f32,
}

pub const SMALL: Case = Case {
    config: MinRecurrentConfig {
        cell: MinCell::Gru,
        input_size: 7,
        hidden_size: 13,
        num_layers: 1,
        candidate: Candidate::Linear,
        reverse: false,
        chunk_len: None,
        variant: None,
    },
    seq_len: 19,
    batch: 3,
    bias: true,
    states: true,
    lengths: None,
    grad_output: true,
    magnitude: 1.5,
};

pub struct Inputs {
    pub input: Vec<f32>,
    pub weights: Vec<Weights<f32>>,
    pub h_0: Vec<f32>,
    pub grad_output: Vec<f32>,
    pub grad_h_n: Vec<f32>,
}

/// A result: its name, the length of its rows, its values.
pub type Named<R> = (String, usize, Vec<R>);

impl Case {
    pub fn shape(&self) -> MinRecurrentShape {
        MinRecurrentShape {
            seq_len: self.seq_len,
            batch: self.batch,
        }
    }

    fn input_size(&self, layer: u32) -> usize {
        match layer {
            0 => self.config.input_size as usize,
            _ => self.config.hidden_size as usize,
        }
    }

    fn rows(&self) -> usize {
        (self.config.cell.num_gates() * self.config.hidden_size) as usize
    }

    pub fn inputs(&self) -> Inputs {
        let config = &self.config;
        let mut random = Random::new(0xb1ab ^ u64::from(self.seq_len * 1009 + config.hidden_size));
        let tokens = (self.seq_len * self.batch) as usize;
        let hidden = config.hidden_size as usize;
        let states = (config.num_layers * self.batch) as usize * hidden;
        let weights = (0..config.num_layers).map(|layer| {
            let size = self.input_size(layer);
            let scale = self.magnitude / (size as f32).sqrt();
            Weights {
                weight: random.normals(self.rows() * size, scale),
                bias: random.normals(if self.bias { self.rows() } else { 0 }, 0.7),
            }
        });
        let weights = weights.collect();
        Inputs {
            weights,
            input: random.normals(tokens * config.input_size as usize, 1.0),
            h_0: random.normals(states, 1.0),
            grad_output: random.normals(tokens * hidden, 0.5),
            grad_h_n: random.normals(states, 1.0),
        }
    }

    /// The truth of every result, or its yardstick, or its magnitudes.
    pub fn reference<R: Real>(&self, inputs: &Inputs) -> Vec<Named<R>> {
        let weights: Vec<_> = inputs.weights.iter().map(Weights::convert).collect();
        let (input, h_0) = (convert(&inputs.input), convert(&inputs.h_0));
        let optional = Optional {
            h_0: self.states.then_some(&h_0[..]),
            lengths: self.lengths,
        };
        let grad_output = match self.grad_output {
            true => convert(&inputs.grad_output),
            false => vec![R::ZERO; inputs.grad_output.len()],
        };
        let grad_h_n = convert(&inputs.grad_h_n);
        let (config, shape) = (&self.config, self.shape());
        let forward = reference::min_recurrent(config, shape, &input, &weights, optional);
        let backward = reference::min_recurrent_backward(
            config,
            shape,
            &input,
            &weights,
            optional,
            &grad_output,
            &grad_h_n,
        );
        let hidden = config.hidden_size as usize;
        let mut all = vec![
            ("output".to_owned(), hidden, forward.output),
            ("h_n".to_owned(), hidden, forward.h_n),
            (
                "grad_input".to_owned(),
                config.input_size as usize,
                backward.input,
            ),
            ("grad_h_0".to_owned(), hidden, backward.h_0),
        ];
        for (layer, weights) in (0..).zip(backward.weights) {
            let size = self.input_size(layer);
            all.push((format!("grad_weight_l{layer}"), size, weights.weight));
            all.push((format!("grad_bias_l{layer}"), self.rows(), weights.bias));
        }
        all
    }
}

pub fn pack(gpu: &Gpu, op: &MinRecurrent, inputs: &Inputs) -> wgpu::Buffer {
    let upload = |values: &[f32]| gpu.upload("weights", values).unwrap();
    let buffers = inputs
        .weights
        .iter()
        .map(|w| [upload(&w.weight), upload(&w.bias)]);
    let buffers: Vec<_> = buffers.collect();
    let weights = buffers.iter().zip(&inputs.weights);
    let weights = weights.map(|([weight, bias], values)| MinRecurrentWeights {
        weight: weight.slice(..),
        bias: (!values.bias.is_empty()).then(|| bias.slice(..)),
    });
    let weights: Vec<_> = weights.collect();
    let packed = Output::new(gpu, op.packed_size() as usize / 4);
    gpu.run(|pass| op.pack_weights(pass, &weights, packed.slice()))
        .unwrap();
    packed.read(gpu);
    packed.buffer
}

/// Runs forward, without and with a reserve, and backward, twice, on scratch full of NaN.
pub fn run(gpu: &Gpu, case: &Case, inputs: &Inputs) -> Vec<Vec<f32>> {
    let op = MinRecurrent::new(gpu.context(), case.config).unwrap();
    let (shape, config) = (case.shape(), &case.config);
    let packed = pack(gpu, &op, inputs);
    let upload = |values: &[f32]| gpu.upload("input", values).unwrap();
    let (input, h_0) = (upload(&inputs.input), upload(&inputs.h_0));
    let (grad_output, grad_h_n) = (upload(&inputs.grad_output), upload(&inputs.grad_h_n));
    let lengths = gpu.upload("lengths", case.lengths.unwrap_or(&[0])).unwrap();
    let (all, state) = (inputs.grad_output.len(), inputs.h_0.len());
    let gradients = config.gradient_size() as usize / 4;
    let reserved = op.reserve_size(shape).unwrap() as usize / 4;
    let sizes = [all, state, inputs.input.len(), state, gradients, reserved];
    let outputs = sizes.map(|len| Output::new(gpu, len));
    let [output, h_n, grad_input, grad_h_0, grad_weights, reserve] =
        outputs.each_ref().map(Output::slice);
    let scratch = Output::new(gpu, op.scratch_size(shape).unwrap() as usize / 4);
    let backward_scratch = Output::new(gpu, op.backward_scratch_size(shape).unwrap() as usize / 4);
    let (h_0, lengths) = (
        case.states.then(|| h_0.slice(..)),
        case.lengths.map(|_| lengths.slice(..)),
    );
    let (input, packed) = (input.slice(..), packed.slice(..));
    let inference = MinRecurrentBuffers {
        h_0,
        lengths,
        h_n: Some(h_n),
        ..MinRecurrentBuffers::new(input, packed, output, scratch.slice())
    };
    let training = MinRecurrentBuffers {
        reserve: Some(reserve),
        ..inference
    };
    let backward = MinRecurrentBackwardBuffers {
        h_0,
        lengths,
        grad_output: case.grad_output.then(|| grad_output.slice(..)),
        grad_h_n: Some(grad_h_n.slice(..)),
        grad_input: Some(grad_input),
        grad_h_0: Some(grad_h_0),
        ..MinRecurrentBackwardBuffers::new(
            input,
            packed,
            output,
            reserve,
            grad_weights,
            backward_scratch.slice(),
        )
    };
    let inference = op.bind(shape, inference).unwrap();
    let training = op.bind(shape, training).unwrap();
    let backward = op.bind_backward(shape, backward).unwrap();
    let record = |bound: &gatefold::Bound| {
        for scratch in [&scratch, &backward_scratch] {
            scratch.poison(gpu);
        }
        gpu.run(|pass: &mut wgpu::ComputePass<'_>| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
        for scratch in [&scratch, &backward_scratch] {
            scratch.read(gpu);
        }
    };
    let forward = |bound| {
        outputs.iter().for_each(|output| output.poison(gpu));
        record(bound);
        [outputs[0].read(gpu), outputs[1].read(gpu)]
    };
    let once = || -> Vec<Vec<f32>> {
        let alone = forward(&inference);
        let [output, h_n] = forward(&training);
        assert_eq!(bits(&alone[0]), bits(&output), "without and with a reserve");
        assert_eq!(bits(&alone[1]), bits(&h_n), "without and with a reserve");
        record(&backward);
        outputs[5].read(gpu);
        let mut all = vec![output, h_n, outputs[2].read(gpu), outputs[3].read(gpu)];
        let grad_weights = outputs[4].read(gpu);
        for layer in 0..config.num_layers {
            for elements in config.gradient_elements(layer) {
                all.push(grad_weights[elements.start as usize..elements.end as usize].to_vec());
            }
        }
        all
    };
    let [first, second] = [once(), once()];
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(bits(first), bits(second), "two runs");
    }
    first
}

/// The guises and variants of a device that run this case in a way of their own.
pub fn ways(guises: &[Gpu], case: &Case) -> Vec<(Gpu, Variant, String)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for guise in guises {
        let capabilities = guise.context().capabilities();
        for variant in case.config.variants(capabilities) {
            let config = MinRecurrentConfig {
                variant: Some(variant),
                ..case.config
            };
            let plan = config.plan(capabilities, case.shape(), MinRecurrentGiven::default());
            let plan = plan.unwrap();
            let forms = plan.dispatches.iter();
            let forms = forms.map(|d| (d.kernel.clone(), d.constants.clone(), d.grid));
            if seen.insert(forms.collect::<Vec<_>>()) {
                found.push((guise.clone(), variant, plan.describe));
            }
        }
    }
    found
}

/// Compares every guise and variant of the device with the reference.
pub fn check(case: Case) {
    if let Some(guises) = shared_guises() {
        check_on(guises, case);
    }
}

/// Compares the floor of all devices and the device itself: for what does not depend on the tile.
pub fn check_lightly(case: Case) {
    if let Some([floor, .., itself, _]) = shared_guises() {
        check_on(&[floor.clone(), itself.clone()], case);
    }
}

pub fn check_on(guises: &[Gpu], case: Case) {
    let inputs = case.inputs();
    for (guise, variant, how) in ways(guises, &case) {
        let forced = Case {
            config: MinRecurrentConfig {
                variant: Some(variant),
                ..case.config
            },
            ..case
        };
        let got = run(&guise, &forced, &inputs);
        judge(
            &case,
            &inputs,
            &got,
            &format!("{variant}, {how}\n{}", guise.describe()),
        );
    }
}

/// Every element of every result.
pub fn judge(case: &Case, inputs: &Inputs, got: &[Vec<f32>], how: &str) {
    let truth = case.reference::<f64>(inputs);
    let tracked = case.reference::<Tracked>(inputs);
    let yardstick = case.reference::<f32>(inputs);
    for (i, (name, row, truth)) in truth.iter().enumerate() {
        let shape = [truth.len() / row, *row];
        let tolerance = match i {
            0 | 1 => Tolerance::RECURRENT,
            _ => Tolerance::GRADIENT,
        };
        let magnitude = magnitudes(&tracked[i].2);
        let yardstick = &yardstick[i].2;
        let agreement = compare_with(
            name, &shape, &got[i], truth, &magnitude, yardstick, tolerance,
        );
        if let Err(difference) = agreement {
            panic!("{difference}\n{case:?}\n{how}");
        }
    }
}
