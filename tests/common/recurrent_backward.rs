//! The backward pass of the cases of recurrence: the kernels' run of it, the reference's.

use std::sync::OnceLock;

use gatefold::reference::compare::{Tolerance, compare_with};
use gatefold::reference::recurrent::{Gradients, Initial, Upstream, Weights, recurrent_backward};
use gatefold::reference::{Real, convert};
use gatefold::{
    Gpu, Recurrent, RecurrentBackwardBuffers, RecurrentBackwardGiven, RecurrentBuffers,
    RecurrentConfig, RecurrentGradients,
};

use super::recurrent::{Case, Inputs, fetched, pack, placed};
use super::{Output, Random, bits, gpu, guises};

/// Which gradients arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arriving {
    pub output: bool,
    pub h_n: bool,
    pub c_n: bool,
}

pub const ALL: Arriving = Arriving {
    output: true,
    h_n: true,
    c_n: true,
};

pub const NONE: Arriving = Arriving {
    output: false,
    h_n: false,
    c_n: false,
};

/// The gradients that arrive, each there whether it is used or not.
pub struct Upstreams {
    pub output: Vec<f32>,
    pub h_n: Vec<f32>,
    pub c_n: Vec<f32>,
}

impl Upstreams {
    pub fn new(case: &Case) -> Self {
        let mut random = Random::new(0xbac4);
        let directions = case.direction.count();
        let state = case.proj_size.unwrap_or(case.hidden_size);
        let output = case.seq_len * case.batch * directions * state;
        let rows = case.num_layers * directions * case.batch;
        Self {
            output: random.normals(output as usize, 1.0),
            h_n: random.normals((rows * state) as usize, 1.0),
            c_n: random.normals((rows * case.hidden_size) as usize, 1.0),
        }
    }
}

/// Name, shape, values: of one gradient.
pub type Named = (String, Vec<usize>, Vec<f32>);

/// The gradients of the reference as they are named below, in the same order.
fn flat<R: Real>(case: &Case, gradients: Gradients<R>) -> Vec<Vec<R>> {
    let mut all = vec![gradients.input, gradients.h_0];
    if case.cell.has_cell_state() {
        all.push(gradients.c_0);
    }
    all.push(gradients.norms);
    for weights in gradients.weights {
        let Weights {
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
            peephole,
            weight_hr,
        } = weights;
        all.extend([weight_ih, weight_hh]);
        if case.bias {
            all.extend([bias_ih, bias_hh]);
        }
        if case.peephole {
            all.push(peephole);
        }
        if case.proj_size.is_some() {
            all.push(weight_hr);
        }
    }
    all
}

/// Values and magnitudes.
pub fn reference<R: Real>(
    case: &Case,
    inputs: &Inputs,
    upstreams: &Upstreams,
    arriving: Arriving,
) -> [Vec<Vec<R>>; 2] {
    let weights: Vec<_> = inputs.weights.iter().map(Weights::convert).collect();
    let (h_0, c_0) = (convert::<R>(&inputs.h_0), convert::<R>(&inputs.c_0));
    let states = case.states;
    let initial = Initial {
        h_0: states.then_some(&h_0[..]),
        c_0: (states && case.cell.has_cell_state()).then_some(&c_0[..]),
        lengths: case.lengths,
    };
    let [output, h_n, c_n] =
        [&upstreams.output, &upstreams.h_n, &upstreams.c_n].map(|values| convert::<R>(values));
    let upstream = Upstream {
        output: arriving.output.then_some(&output[..]),
        h_n: arriving.h_n.then_some(&h_n[..]),
        c_n: (arriving.c_n && case.cell.has_cell_state()).then_some(&c_n[..]),
    };
    let input = convert(&inputs.input);
    recurrent_backward(&case.problem(), &input, &weights, initial, upstream)
        .map(|gradients| flat(case, gradients))
}

/// Forward and backward twice, bit for bit the same; all gradients.
pub fn run(
    gpu: &Gpu,
    case: &Case,
    config: RecurrentConfig,
    inputs: &Inputs,
    upstreams: &Upstreams,
    arriving: Arriving,
) -> Vec<Named> {
    let op = Recurrent::new(gpu.context(), config).unwrap();
    let packed = pack(gpu, &op, inputs);
    let upload = |name: &str, values: &[f32]| gpu.upload(name, values).unwrap();
    let input = config.element.words(&placed(case, &inputs.input));
    let input = gpu.upload("input", &input).unwrap();
    let (h_0, c_0) = (upload("h_0", &inputs.h_0), upload("c_0", &inputs.c_0));
    let lengths = gpu.upload("lengths", case.lengths.unwrap_or(&[0])).unwrap();
    let is_lstm = case.cell.has_cell_state();
    let shape = case.shape();
    let output = Output::new(gpu, upstreams.output.len());
    let reserve = Output::new(gpu, op.reserve_size(shape).unwrap() as usize / 4);
    let size = op.backward_scratch_size(shape).unwrap();
    let scratch = Output::new(gpu, size as usize / 4);
    let size = match case.checkpoint_every {
        Some(_) => op.scratch_size(shape).unwrap(),
        None => 4,
    };
    let ahead = Output::new(gpu, size as usize / 4);
    let forward = RecurrentBuffers {
        h_0: case.states.then(|| h_0.slice(..)),
        c_0: (case.states && is_lstm).then(|| c_0.slice(..)),
        lengths: case.lengths.map(|_| lengths.slice(..)),
        reserve: Some(reserve.buffer.slice(..)),
        ..RecurrentBuffers::new(
            input.slice(..),
            packed.slice(..),
            output.buffer.slice(..),
            ahead.buffer.slice(..),
        )
    };
    let forward = op.bind(shape, forward).unwrap();

    let (directions, hidden) = (case.direction.count() as usize, case.hidden_size as usize);
    let (seq_len, batch) = (case.seq_len as usize, case.batch as usize);
    let count = case.num_layers as usize * directions;
    let gate_rows = case.cell.num_gates() as usize * hidden;
    let mut outputs: Vec<(String, Vec<usize>, Output)> = Vec::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let len = shape.iter().product();
        outputs.push((name, shape, Output::new(gpu, len)));
    };
    add(
        "grad_input".into(),
        vec![seq_len, batch, case.input_size as usize],
    );
    let state = case.problem().state_size();
    add("grad_h_0".into(), vec![count, batch, state]);
    if is_lstm {
        add("grad_c_0".into(), vec![count, batch, hidden]);
    }
    add("grad_norms".into(), vec![count, seq_len]);
    let first = if is_lstm { 4 } else { 3 };
    for (at, weights) in inputs.weights.iter().enumerate() {
        let width = weights.weight_ih.len() / gate_rows;
        add(format!("grad_weight_ih {at}"), vec![gate_rows, width]);
        add(format!("grad_weight_hh {at}"), vec![gate_rows, state]);
        if case.bias {
            // one row: a bias has no other to be compared with
            add(format!("grad_bias_ih {at}"), vec![gate_rows]);
            add(format!("grad_bias_hh {at}"), vec![gate_rows]);
        }
        if case.peephole {
            add(format!("grad_peephole {at}"), vec![3 * hidden]);
        }
        if case.proj_size.is_some() {
            add(format!("grad_weight_hr {at}"), vec![state, hidden]);
        }
    }
    let slice = |at: usize| outputs[at].2.buffer.slice(..);
    let biased = 2 + 2 * usize::from(case.bias);
    let each = biased + usize::from(case.peephole) + usize::from(case.proj_size.is_some());
    let gradients: Vec<RecurrentGradients<'_>> = (0..count)
        .map(|at| {
            let own = first + at * each;
            RecurrentGradients {
                weight_ih: slice(own),
                weight_hh: slice(own + 1),
                bias: case.bias.then(|| (slice(own + 2), slice(own + 3))),
                peephole: case.peephole.then(|| slice(own + biased)),
                weight_hr: case.proj_size.is_some().then(|| slice(own + each - 1)),
            }
        })
        .collect();
    let grad_output = upload("grad_output", &placed(case, &upstreams.output));
    let (grad_h_n, grad_c_n) = (
        upload("grad_h_n", &upstreams.h_n),
        upload("grad_c_n", &upstreams.c_n),
    );
    let backward = RecurrentBackwardBuffers {
        lengths: case.lengths.map(|_| lengths.slice(..)),
        grad_output: arriving.output.then(|| grad_output.slice(..)),
        grad_h_n: arriving.h_n.then(|| grad_h_n.slice(..)),
        grad_c_n: (arriving.c_n && is_lstm).then(|| grad_c_n.slice(..)),
        grad_input: Some(slice(0)),
        grad_h_0: Some(slice(1)),
        grad_c_0: is_lstm.then(|| slice(2)),
        grad_norms: Some(slice(first - 1)),
        grad_weights: &gradients,
        ..RecurrentBackwardBuffers::new(
            input.slice(..),
            packed.slice(..),
            reserve.buffer.slice(..),
            scratch.buffer.slice(..),
        )
    };
    let backward = op.bind_backward(shape, backward).unwrap();
    let once = || -> Vec<Vec<f32>> {
        for output in outputs.iter().map(|(_, _, output)| output) {
            output.poison(gpu);
        }
        [&output, &reserve, &scratch, &ahead]
            .into_iter()
            .for_each(|output| output.poison(gpu));
        gpu.run(|pass| {
            forward.record(pass);
            backward.record(pass);
            Ok(())
        })
        .unwrap();
        reserve.read(gpu);
        scratch.read(gpu);
        ahead.read(gpu);
        outputs
            .iter()
            .map(|(_, _, output)| output.read(gpu))
            .collect()
    };
    let [first, second] = [once(), once()];
    let named = outputs.iter().map(|(name, shape, _)| (name, shape));
    let mut results = Vec::new();
    for ((name, shape), (first, second)) in named.zip(first.into_iter().zip(second)) {
        assert_eq!(bits(&first), bits(&second), "{name}: two runs");
        results.push((name.clone(), shape.clone(), first));
    }
    results[0].2 = fetched(case, &results[0].2);
    results
}

/// Every tier and variant of the sweep of every guise that runs this case in a way of its own.
pub fn variants(guises: &[Gpu], case: &Case) -> Vec<(Gpu, RecurrentConfig, String)> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for guise in guises {
        let capabilities = *guise.context().capabilities();
        let any = case.config(None, None);
        for variant in any.variants(&capabilities) {
            for tier in any.backward_tiers(&capabilities, case.batch) {
                let config = RecurrentConfig {
                    gradients: true,
                    ..case.config(Some(tier), Some(variant))
                };
                let given = RecurrentBackwardGiven {
                    parameters: true,
                    ..Default::default()
                };
                // a tier may be too large for the forward pass
                if config
                    .plan(&capabilities, case.shape(), case.given())
                    .is_err()
                {
                    continue;
                }
                let plan = config.plan_backward(&capabilities, case.shape(), given);
                let plan = plan.unwrap();
                // what the products run is told apart in their own tests
                let sweeps = ["recurrent_backward_stepped", "recurrent_backward_resident"];
                let forms = plan
                    .dispatches
                    .iter()
                    .filter(|d| sweeps.contains(&d.kernel.name))
                    .map(|d| (d.kernel.clone(), d.constants.clone(), d.grid));
                let forms: Vec<_> = forms.collect();
                if forms.is_empty() || !seen.contains(&forms) {
                    seen.push(forms);
                    let how = format!("{variant}, {}", plan.describe);
                    found.push((guise.clone(), config, how));
                }
            }
        }
    }
    found
}

/// The guises of the device, whose compiled kernels serve all cases.
pub fn all_guises() -> Option<&'static [Gpu]> {
    static GUISES: OnceLock<Vec<Gpu>> = OnceLock::new();
    gpu().map(|gpu| GUISES.get_or_init(|| guises(gpu)).as_slice())
}

/// Compares every tier and variant of every guise of the device with the reference.
pub fn check(case: Case) {
    if let Some(guises) = all_guises() {
        check_in(&variants(guises, &case), case, ALL);
    }
}

/// [`check`] in two of the ways, others from case to case: each is a set of kernels to compile.
pub fn check_some(case: Case) {
    check_arriving(case, ALL);
}

/// [`check_some`] with only some of the gradients arriving.
pub fn check_arriving(case: Case, arriving: Arriving) {
    if let Some(guises) = all_guises() {
        check_in(&some(variants(guises, &case), &case), case, arriving);
    }
}

/// Two of the ways to run a case.
pub fn some<T>(mut ways: Vec<T>, case: &Case) -> Vec<T> {
    let text = format!("{case:?}");
    let number = text.bytes().fold(7_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    let first = number % ways.len();
    ways.rotate_left(first);
    let other = ways.len() / 2;
    let mut at = 0;
    ways.retain(|_| {
        at += 1;
        at == 1 || at == 1 + other
    });
    ways
}

/// Compares some ways to run a case with the reference.
pub fn check_in(ways: &[(Gpu, RecurrentConfig, String)], case: Case, arriving: Arriving) {
    let inputs = case.inputs();
    let upstreams = Upstreams::new(&case);
    let [truth, magnitude] = reference::<f64>(&case, &inputs, &upstreams, arriving);
    let [yardstick, _] = reference::<f32>(&case, &inputs, &upstreams, arriving);
    for (guise, config, how) in ways {
        let results = run(guise, &case, *config, &inputs, &upstreams, arriving);
        assert_eq!(results.len(), truth.len());
        for (at, (name, shape, got)) in results.iter().enumerate() {
            let agreement = compare_with(
                name,
                shape,
                got,
                &truth[at],
                &magnitude[at],
                &yardstick[at],
                Tolerance::GRADIENT,
            );
            if let Err(difference) = agreement {
                panic!("{difference}\n{how}\n{case:?}\n{}", guise.describe());
            }
        }
    }
}
