//! Cases of scans: inputs, the kernels' run of them, the reference's.

use std::collections::HashSet;

use gatefold::reference::compare::{Tolerance, compare_with};
use gatefold::reference::scan::{self as reference, Optional};
use gatefold::reference::tracked::{Tracked, magnitudes};
use gatefold::reference::{Real, convert};
use gatefold::{
    Gpu, Scan, ScanBackwardBuffers, ScanBuffers, ScanConfig, ScanGiven, ScanShape, wgpu,
};

use super::{Output, Random, bits, shared_guises};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub seq_len: u32,
    pub batch: u32,
    pub width: u32,
    pub reverse: bool,
    pub chunk_len: Option<u32>,
    /// Whether h_0 is given.
    pub states: bool,
    pub lengths: Option<&'static [u32]>,
    /// Whether there are gradients of all states, beside that of the last one.
    pub grad_output: bool,
}

pub const SMALL: Case = Case {
    seq_len: 37,
    batch: 3,
    width: 5,
    reverse: false,
    chunk_len: None,
    states: true,
    lengths: None,
    grad_output: true,
};

pub struct Inputs {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub h_0: Vec<f32>,
    pub grad_output: Vec<f32>,
    pub grad_h_n: Vec<f32>,
}

/// output, h_n, grad_a, grad_b, grad_h_0
pub type Results = Vec<Vec<f32>>;

pub const NAMES: [&str; 5] = ["output", "h_n", "grad_a", "grad_b", "grad_h_0"];

impl Case {
    pub fn config(&self) -> ScanConfig {
        ScanConfig {
            reverse: self.reverse,
            chunk_len: self.chunk_len,
        }
    }

    pub fn shape(&self) -> ScanShape {
        ScanShape {
            seq_len: self.seq_len,
            batch: self.batch,
            width: self.width,
        }
    }

    pub fn inputs(&self) -> Inputs {
        let lanes = (self.batch * self.width) as usize;
        let len = self.seq_len as usize * lanes;
        let mut random = Random::new(0x5ca0 ^ u64::from(self.seq_len * 1009 + self.width));
        // of both signs, most of them near 1: a state that is forgotten at once would tell nothing
        let sign = |x: f32| if x < 0.15 { -1.0 } else { 1.0 };
        let a = (0..len)
            .map(|_| sign(random.uniform()) * (1.0 - 0.4 * random.uniform().powi(3)))
            .collect();
        Inputs {
            a,
            b: random.normals(len, 0.7),
            h_0: random.normals(lanes, 1.0),
            grad_output: random.normals(len, 0.5),
            grad_h_n: random.normals(lanes, 1.0),
        }
    }

    /// The truth of every result, or its yardstick, or its magnitudes.
    pub fn reference<R: Real>(&self, inputs: &Inputs) -> Vec<Vec<R>> {
        let [a, b, h_0, grad_h_n] = [&inputs.a, &inputs.b, &inputs.h_0, &inputs.grad_h_n]
            .map(|values| convert::<R>(values));
        let grad_output = match self.grad_output {
            true => convert(&inputs.grad_output),
            false => vec![R::ZERO; a.len()],
        };
        let optional = Optional {
            h_0: self.states.then_some(&h_0[..]),
            lengths: self.lengths,
        };
        let (shape, reverse) = (self.shape(), self.reverse);
        let forward = reference::scan(shape, reverse, &a, &b, optional);
        let backward =
            reference::scan_backward(shape, reverse, &a, &b, optional, &grad_output, &grad_h_n);
        vec![
            forward.output,
            forward.h_n,
            backward.grad_a,
            backward.grad_b,
            backward.grad_h_0,
        ]
    }
}

/// Runs forward and backward twice, on scratch full of NaN.
pub fn run(gpu: &Gpu, case: &Case, inputs: &Inputs) -> Results {
    let op = Scan::new(gpu.context(), case.config()).unwrap();
    let upload = |values: &[f32]| gpu.upload("input", values).unwrap();
    let [a, b, h_0] = [&inputs.a, &inputs.b, &inputs.h_0].map(|values| upload(values));
    let (grad_output, grad_h_n) = (upload(&inputs.grad_output), upload(&inputs.grad_h_n));
    let lengths = gpu.upload("lengths", case.lengths.unwrap_or(&[0])).unwrap();
    let (all, state) = (inputs.a.len(), inputs.h_0.len());
    let outputs = [all, state, all, all, state].map(|len| Output::new(gpu, len));
    let [output, h_n, grad_a, grad_b, grad_h_0] = outputs.each_ref().map(Output::slice);
    let scratch = Output::new(gpu, op.scratch_size(case.shape()).unwrap() as usize / 4);
    let buffers = ScanBuffers {
        h_0: case.states.then(|| h_0.slice(..)),
        lengths: case.lengths.map(|_| lengths.slice(..)),
        h_n: Some(h_n),
        ..ScanBuffers::new(a.slice(..), b.slice(..), output, scratch.slice())
    };
    let forward = op.bind(case.shape(), buffers).unwrap();
    let buffers = ScanBackwardBuffers {
        h_0: case.states.then(|| h_0.slice(..)),
        lengths: case.lengths.map(|_| lengths.slice(..)),
        grad_output: case.grad_output.then(|| grad_output.slice(..)),
        grad_h_n: Some(grad_h_n.slice(..)),
        grad_h_0: Some(grad_h_0),
        ..ScanBackwardBuffers::new(a.slice(..), output, grad_a, grad_b, scratch.slice())
    };
    let backward = op.bind_backward(case.shape(), buffers).unwrap();
    let once = || -> Results {
        outputs.iter().for_each(|output| output.poison(gpu));
        for bound in [&forward, &backward] {
            scratch.poison(gpu);
            gpu.run(|pass: &mut wgpu::ComputePass<'_>| {
                bound.record(pass);
                Ok(())
            })
            .unwrap();
            scratch.read(gpu);
        }
        outputs.iter().map(|output| output.read(gpu)).collect()
    };
    let [first, second] = [once(), once()];
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(bits(first), bits(second), "two runs");
    }
    first
}

/// The guises of a device that run this case in a way of their own.
pub fn ways(guises: &[Gpu], case: &Case) -> Vec<(Gpu, String)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for guise in guises {
        let capabilities = guise.context().capabilities();
        let plan = case
            .config()
            .plan(capabilities, case.shape(), ScanGiven::default());
        let plan = plan.unwrap();
        let forms = plan.dispatches.iter();
        let forms = forms.map(|d| (d.kernel.clone(), d.constants.clone(), d.grid));
        if seen.insert(forms.collect::<Vec<_>>()) {
            found.push((guise.clone(), plan.describe));
        }
    }
    found
}

/// Compares every guise of the device with the reference.
pub fn check(case: Case) {
    if let Some(guises) = shared_guises() {
        check_on(guises, case);
    }
}

pub fn check_on(guises: &[Gpu], case: Case) {
    let inputs = case.inputs();
    for (guise, how) in ways(guises, &case) {
        let got = run(&guise, &case, &inputs);
        judge(
            &case,
            &inputs,
            &got,
            &format!("{how}\n{}", guise.describe()),
        );
    }
}

/// Every element of every result.
pub fn judge(case: &Case, inputs: &Inputs, got: &Results, how: &str) {
    let truth = case.reference::<f64>(inputs);
    let tracked = case.reference::<Tracked>(inputs);
    let yardstick = case.reference::<f32>(inputs);
    for (i, name) in NAMES.into_iter().enumerate() {
        let width = case.width as usize;
        let shape = [truth[i].len() / width, width];
        let tolerance = match i {
            0 | 1 => Tolerance::RECURRENT,
            _ => Tolerance::GRADIENT,
        };
        let magnitude = magnitudes(&tracked[i]);
        let agreement = compare_with(
            name,
            &shape,
            &got[i],
            &truth[i],
            &magnitude,
            &yardstick[i],
            tolerance,
        );
        if let Err(difference) = agreement {
            panic!("{difference}\n{case:?}\n{how}");
        }
    }
}
