//! minGRU and minLSTM on the device against the f64 reference, forward and backward.

mod common;

use common::min_recurrent::{Case, Inputs, SMALL, check, check_lightly, check_on, judge, run};
use common::{bits, gpu, guises};
use gatefold::reference::min_recurrent::{Optional, Weights};
use gatefold::reference::min_recurrent::{min_recurrent, min_recurrent_backward};
use gatefold::{
    Candidate, Capabilities, MinCell, MinRecurrent, MinRecurrentConfig, MinRecurrentGiven,
    MinRecurrentShape,
};

fn with(change: impl Fn(&mut MinRecurrentConfig)) -> Case {
    let mut case = SMALL;
    change(&mut case.config);
    case
}

fn both_cells(case: Case, check: fn(Case)) {
    for cell in [MinCell::Gru, MinCell::Lstm] {
        let mut case = case;
        case.config.cell = cell;
        check(case);
    }
}

#[test]
fn plain() {
    both_cells(SMALL, check);
}

#[test]
fn without_bias_states_and_gradients_of_outputs() {
    both_cells(
        Case {
            bias: false,
            states: false,
            grad_output: false,
            ..SMALL
        },
        check_lightly,
    );
}

#[test]
fn positive_candidates() {
    both_cells(
        with(|config| config.candidate = Candidate::Positive),
        check_lightly,
    );
}

#[test]
fn layers_in_both_orders_of_time() {
    for (num_layers, reverse) in [(2, false), (3, true)] {
        both_cells(
            Case {
                magnitude: 1.0,
                ..with(|config| {
                    config.num_layers = num_layers;
                    config.reverse = reverse;
                })
            },
            check_lightly,
        );
    }
}

#[test]
fn chunks_and_lengths() {
    for (chunk_len, reverse) in [(1, true), (4, false), (8, true)] {
        both_cells(
            Case {
                batch: 5,
                lengths: Some(&[19, 0, 1, 8, 18]),
                magnitude: 1.0,
                ..with(|config| {
                    config.chunk_len = Some(chunk_len);
                    config.reverse = reverse;
                    config.num_layers = 2;
                })
            },
            check_lightly,
        );
    }
}

#[test]
fn sizes_around_the_tiles() {
    for (seq_len, batch, input_size, hidden_size) in [
        (1, 1, 1, 1),
        (300, 1, 3, 2),
        (40, 2, 33, 64),
        (17, 1, 70, 100),
    ] {
        both_cells(
            Case {
                seq_len,
                batch,
                ..with(|config| {
                    config.input_size = input_size;
                    config.hidden_size = hidden_size;
                })
            },
            check_lightly,
        );
    }
}

#[test]
fn saturated_gates_stay_finite() {
    both_cells(
        Case {
            magnitude: 3000.0,
            ..SMALL
        },
        check_lightly,
    );
}

#[test]
fn nothing_to_do() {
    both_cells(
        Case {
            seq_len: 0,
            ..with(|config| config.num_layers = 2)
        },
        check_lightly,
    );
    both_cells(Case { batch: 0, ..SMALL }, check_lightly);
}

#[test]
fn segments_hand_their_state_and_sums_on() {
    let Some(gpu) = gpu() else { return };
    for (cell, reverse) in [(MinCell::Gru, true), (MinCell::Lstm, false)] {
        let case = Case {
            seq_len: 50,
            lengths: Some(&[50, 20, 49]),
            magnitude: 1.0,
            ..with(|config| {
                config.cell = cell;
                config.reverse = reverse;
                config.num_layers = 2;
            })
        };
        let cut = |guise: &gatefold::Gpu| {
            let few = Capabilities {
                storage_binding_size: 5 << 10,
                ..*guise.context().capabilities()
            };
            gpu.with_capabilities(few, Default::default())
        };
        let cut: Vec<_> = guises(gpu)[2..4].iter().map(cut).collect();
        let capabilities = cut[0].context().capabilities();
        let given = MinRecurrentGiven::default();
        let plan = case.config.plan(capabilities, case.shape(), given);
        assert!(plan.unwrap().dispatches.len() >= 16);
        check_on(&cut, case);
    }
}

#[test]
fn a_batch_of_one_is_a_row_of_a_larger_one() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        batch: 4,
        ..with(|config| config.chunk_len = Some(8))
    };
    let inputs = case.inputs();
    let all = run(gpu, &case, &inputs);
    let one = Case { batch: 1, ..case };
    let row = |values: &[f32], width: usize| -> Vec<f32> {
        let rows = values.chunks(width).skip(2).step_by(4);
        rows.flatten().copied().collect()
    };
    let alone = Inputs {
        input: row(&inputs.input, 7),
        h_0: row(&inputs.h_0, 13),
        grad_output: row(&inputs.grad_output, 13),
        grad_h_n: row(&inputs.grad_h_n, 13),
        weights: inputs.weights,
    };
    let alone = run(gpu, &one, &alone);
    assert_eq!(bits(&row(&all[0], 13)), bits(&alone[0]));
}

/// What is not a number shows in its sequence from its step on, and nowhere else.
#[test]
fn nan_stays_in_its_sequence_and_is_not_lost_there() {
    let Some(gpu) = gpu() else { return };
    for candidate in [Candidate::Linear, Candidate::Positive] {
        for cell in [MinCell::Gru, MinCell::Lstm] {
            let case = with(|config| {
                (config.cell, config.candidate) = (cell, candidate);
                config.chunk_len = Some(8);
            });
            let mut inputs = case.inputs();
            let clean = run(gpu, &case, &inputs);
            let (batch, time) = (case.batch as usize, 9);
            inputs.input[(time * batch + 1) * 7 + 3] = f32::NAN;
            let got = run(gpu, &case, &inputs);
            for (at, (got, clean)) in got[0].iter().zip(&clean[0]).enumerate() {
                let (row, step) = (at / 13 % batch, at / 13 / batch);
                let as_expected = match row == 1 && step >= time {
                    true => got.is_nan(),
                    false => got.to_bits() == clean.to_bits(),
                };
                assert!(
                    as_expected,
                    "{cell:?}, {candidate:?}: element {at} is {got}"
                );
            }
        }
    }
}

/// The reference's gradients, by finite differences.
#[test]
fn the_reference_is_right() {
    for (cell, candidate, reverse) in [
        (MinCell::Gru, Candidate::Linear, false),
        (MinCell::Gru, Candidate::Positive, true),
        (MinCell::Lstm, Candidate::Linear, true),
        (MinCell::Lstm, Candidate::Positive, false),
    ] {
        let case = Case {
            seq_len: 5,
            batch: 4,
            lengths: Some(&[5, 0, 2, 4]),
            ..with(|config| {
                config.cell = cell;
                config.candidate = candidate;
                config.reverse = reverse;
                config.input_size = 2;
                config.hidden_size = 3;
                config.num_layers = 2;
            })
        };
        let inputs = case.inputs();
        let to_f64 = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (grad_output, grad_h_n) = (to_f64(&inputs.grad_output), to_f64(&inputs.grad_h_n));
        let mut x = vec![to_f64(&inputs.input), to_f64(&inputs.h_0)];
        for weights in &inputs.weights {
            x.extend([to_f64(&weights.weight), to_f64(&weights.bias)]);
        }
        let weights = |x: &[Vec<f64>]| -> Vec<Weights<f64>> {
            let layers = x[2..].chunks(2);
            let layer = |layer: &[Vec<f64>]| Weights {
                weight: layer[0].clone(),
                bias: layer[1].clone(),
            };
            layers.map(layer).collect()
        };
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let (config, shape) = (&case.config, case.shape());
        let loss = |x: &[Vec<f64>]| {
            let optional = Optional {
                h_0: Some(&x[1][..]),
                lengths: case.lengths,
            };
            let got = min_recurrent(config, shape, &x[0], &weights(x), optional);
            dot(&got.output, &grad_output) + dot(&got.h_n, &grad_h_n)
        };
        let optional = Optional {
            h_0: Some(&x[1][..]),
            lengths: case.lengths,
        };
        let layers = weights(&x);
        let got = min_recurrent_backward(
            config,
            shape,
            &x[0],
            &layers,
            optional,
            &grad_output,
            &grad_h_n,
        );
        let mut gradients = vec![got.input, got.h_0];
        for weights in got.weights {
            gradients.extend([weights.weight, weights.bias]);
        }
        const STEP: f64 = 1e-6;
        for tensor in 0..x.len() {
            for at in 0..x[tensor].len() {
                let before = x[tensor][at];
                let mut at_offset = |offset: f64| {
                    x[tensor][at] = before + offset;
                    loss(&x)
                };
                let slope = (at_offset(STEP) - at_offset(-STEP)) / (2.0 * STEP);
                x[tensor][at] = before;
                let got = gradients[tensor][at];
                let error = (got - slope).abs() / slope.abs().max(1.0);
                assert!(error < 1e-6, "{cell:?} {tensor}[{at}]: {got}, {slope}");
            }
        }
    }
}

#[test]
fn swapped_gates_are_noticed() {
    let case = with(|config| config.cell = MinCell::Lstm);
    let inputs = case.inputs();
    let results = |inputs: &Inputs| -> Vec<Vec<f32>> {
        let named = case.reference::<f32>(inputs).into_iter();
        named.map(|(_, _, values)| values).collect()
    };
    judge(&case, &inputs, &results(&inputs), "the reference in f32");
    let mut swapped = case.inputs();
    swapped.weights[0].weight.rotate_left(13 * 7);
    let got = results(&swapped);
    let swapped = std::panic::catch_unwind(|| judge(&case, &inputs, &got, "swapped"));
    assert!(swapped.is_err());
}

#[test]
fn mistakes_are_named() {
    let Some(gpu) = gpu() else { return };
    let none = MinRecurrentConfig {
        hidden_size: 0,
        ..Default::default()
    };
    let message = MinRecurrent::new(gpu.context(), none)
        .unwrap_err()
        .to_string();
    assert_eq!(message, "hidden_size is 0, expected 1 to 16384");
    let op = MinRecurrent::new(gpu.context(), SMALL.config).unwrap();
    let buffer = gpu.zeros("tensor", 4096).unwrap();
    let packed = gpu.run(|pass| op.pack_weights(pass, &[], buffer.slice(..)));
    let expected = "number of weights is 0, expected num_layers = 1";
    assert_eq!(packed.unwrap_err().to_string(), expected);
    let huge = MinRecurrentShape {
        seq_len: (1 << 30) - 1,
        batch: (1 << 30) - 1,
    };
    let message = op
        .plan(huge, MinRecurrentGiven::default())
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("max_buffer_size is "), "{message}");
}
