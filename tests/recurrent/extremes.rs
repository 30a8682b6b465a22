//! Values at the ends of what a number can be, and beyond.

use super::CELLS;
use crate::common::recurrent::{Case, SMALL, check, check_inputs, run, variants};
use crate::common::{gpu, guises};
use gatefold::{Activation, Activations, Cell, Direction};

#[test]
fn saturated_gates_stay_finite() {
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru] {
        check(Case {
            cell,
            magnitude: 300.0,
            seq_len: 3,
            ..SMALL
        });
    }
}

/// Relative to themselves: a device's own tanh of a small number may be the difference of two large ones.
#[test]
fn small_states_keep_their_digits() {
    let Some(gpu) = gpu() else { return };
    let named = |activation| {
        let own = Activations {
            gate: activation,
            candidate: activation,
            output: activation,
        };
        Some([own; 2])
    };
    for (cell, activations, bias) in [
        (Cell::RnnTanh, None, 0.0),
        (Cell::RnnTanh, named(Activation::Elu), 0.0),
        (Cell::RnnTanh, named(Activation::Softplus), -10.0),
        (Cell::Lstm, None, 0.0),
        (Cell::Gru, None, 0.0),
    ] {
        let case = Case {
            cell,
            activations,
            states: false,
            ..SMALL
        };
        let mut inputs = case.inputs();
        inputs.input.iter_mut().for_each(|x| *x *= 1e-4);
        inputs.weights[0].bias_ih.fill(bias);
        inputs.weights[0].bias_hh.fill(0.0);
        check_inputs(&guises(gpu), case, &inputs);
    }
}

/// What is not a number shows in its sequence from its step on, as in PyTorch, and nowhere else.
#[test]
fn nan_stays_in_its_sequence_and_is_not_lost_there() {
    let Some(gpu) = gpu() else { return };
    for cell in CELLS {
        let named = |gate, candidate| {
            let output = Activation::Tanh;
            let own = Activations {
                gate,
                candidate,
                output,
            };
            Some([own; 2])
        };
        let activations = match cell {
            Cell::Gru => named(Activation::HardSigmoid, Activation::Relu),
            Cell::LstmCoupled => named(Activation::Sigmoid, Activation::ThresholdedRelu),
            _ => None,
        };
        let case = Case {
            cell,
            activations,
            magnitude: 0.9,
            direction: Direction::Bidirectional,
            ..SMALL
        };
        let clean = case.inputs();
        let (batch, time) = (case.batch as usize, 2);
        let mut inputs = case.inputs();
        inputs.input[(time * batch + 1) * case.input_size as usize + 3] = f32::NAN;
        let hidden = case.hidden_size as usize;
        for (guise, config, how) in variants(&guises(gpu), &case) {
            let [clean, got] = [&clean, &inputs].map(|inputs| run(&guise, &case, config, inputs));
            for (at, (got, clean)) in got[0].iter().zip(&clean[0]).enumerate() {
                let (unit, row) = (at / hidden % 2, at / hidden / 2 % batch);
                let step = at / hidden / 2 / batch;
                // the reverse direction comes from the end
                let reached = if unit == 0 {
                    step >= time
                } else {
                    step <= time
                };
                let as_expected = match row == 1 && reached {
                    true => got.is_nan(),
                    false => got.to_bits() == clean.to_bits(),
                };
                assert!(as_expected, "{cell:?}, {how}: element {at} is {got}");
            }
        }
        let output = inputs.reference::<f64>(&case).output;
        assert_eq!(output.iter().filter(|x| x.is_nan()).count(), {
            let seq_len = case.seq_len as usize;
            (seq_len - time + time + 1) * hidden
        });
    }
}
