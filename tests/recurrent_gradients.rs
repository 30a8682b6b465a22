//! The reference's gradients of recurrence against finite differences, in f64.

mod common;

use common::recurrent::{Case, SMALL};
use common::recurrent_backward::{ALL, Arriving, Upstreams, reference};
use gatefold::reference::convert;
use gatefold::reference::recurrent::{Initial, Weights, recurrent};
use gatefold::{Activation, Activations, Cell, Direction};

/// Everything that has a gradient, in the order of `common::recurrent_backward::reference`, norms aside.
struct Point {
    input: Vec<f64>,
    h_0: Vec<f64>,
    c_0: Vec<f64>,
    weights: Vec<Weights<f64>>,
}

impl Point {
    fn tensors(&mut self, case: &Case) -> Vec<(&'static str, &mut Vec<f64>)> {
        let mut all = vec![("input", &mut self.input), ("h_0", &mut self.h_0)];
        if case.cell.has_cell_state() {
            all.push(("c_0", &mut self.c_0));
        }
        for weights in &mut self.weights {
            all.push(("weight_ih", &mut weights.weight_ih));
            all.push(("weight_hh", &mut weights.weight_hh));
            if case.bias {
                all.push(("bias_ih", &mut weights.bias_ih));
                all.push(("bias_hh", &mut weights.bias_hh));
            }
            if case.peephole {
                all.push(("peephole", &mut weights.peephole));
            }
            if case.proj_size.is_some() {
                all.push(("weight_hr", &mut weights.weight_hr));
            }
        }
        all
    }

    /// What the gradients that arrive are the gradients of.
    fn loss(&self, case: &Case, upstreams: &Upstreams, arriving: Arriving) -> f64 {
        let initial = Initial {
            h_0: Some(&self.h_0[..]),
            c_0: case.cell.has_cell_state().then_some(&self.c_0[..]),
            lengths: case.lengths,
        };
        let got = recurrent(&case.problem(), &self.input, &self.weights, initial);
        let product = |a: &[f64], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| a * f64::from(b)).sum()
        };
        let all = [
            (&got.output, &upstreams.output, arriving.output),
            (&got.h_n, &upstreams.h_n, arriving.h_n),
            (&got.c_n, &upstreams.c_n, arriving.c_n),
        ];
        all.into_iter()
            .filter(|(.., arriving)| *arriving)
            .map(|(values, upstream, _)| product(values, upstream))
            .sum()
    }
}

fn check(case: Case, arriving: Arriving) {
    const STEP: f64 = 1e-6;
    let inputs = case.inputs();
    let upstreams = Upstreams::new(&case);
    let [gradients, magnitudes] = reference::<f64>(&case, &inputs, &upstreams, arriving);
    let norms = if case.cell.has_cell_state() { 3 } else { 2 };
    let of_tensors = |mut all: Vec<Vec<f64>>| {
        all.remove(norms);
        all
    };
    let (gradients, magnitudes) = (of_tensors(gradients), of_tensors(magnitudes));
    let mut point = Point {
        input: convert(&inputs.input),
        h_0: convert(&inputs.h_0),
        c_0: convert(&inputs.c_0),
        weights: inputs.weights.iter().map(Weights::convert).collect(),
    };
    let mut told = 0;
    for at in 0..gradients.len() {
        let len = gradients[at].len();
        // an odd stride: every gate, unit and row comes up
        for element in (0..len).step_by((len / 23).max(1) | 1) {
            let mut loss_at = |by: f64| {
                let (_, tensor) = &mut point.tensors(&case)[at];
                let kept = tensor[element];
                tensor[element] += by;
                let loss = point.loss(&case, &upstreams, arriving);
                point.tensors(&case)[at].1[element] = kept;
                loss
            };
            let expected = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
            let got = gradients[at][element];
            let scale = magnitudes[at][element].max(1.0);
            assert!(
                magnitudes[at][element] >= got.abs() * (1.0 - 1e-12),
                "a sum over absolute values is no smaller"
            );
            let name = point.tensors(&case)[at].0;
            assert!(
                (got - expected).abs() <= 2e-7 * scale,
                "{name} {at}[{element}]: {got:e}, by differences {expected:e}\n{case:?}"
            );
            told += usize::from(expected.abs() > 1e-4);
        }
    }
    assert!(told > 40, "the gradients vanish: {case:?}");
}

const CASE: Case = Case {
    input_size: 3,
    hidden_size: 5,
    seq_len: 6,
    num_layers: 2,
    direction: Direction::Bidirectional,
    lengths: Some(&[6, 0, 4]),
    ..SMALL
};

#[test]
fn of_every_cell() {
    for cell in [
        Cell::RnnTanh,
        Cell::RnnRelu,
        Cell::Lstm,
        Cell::LstmCoupled,
        Cell::Gru,
        Cell::GruResetBefore,
    ] {
        check(Case { cell, ..CASE }, ALL);
        check(
            Case {
                cell,
                clip: Some(0.4),
                direction: Direction::Reverse,
                ..CASE
            },
            ALL,
        );
    }
}

#[test]
fn by_way_of_each_output() {
    let none = Arriving {
        output: false,
        h_n: false,
        c_n: false,
    };
    check(CASE, Arriving { h_n: true, ..none });
    check(CASE, Arriving { c_n: true, ..none });
    check(
        CASE,
        Arriving {
            output: true,
            ..none
        },
    );
}

#[test]
fn of_peepholes_projections_and_dropout() {
    for cell in [Cell::Lstm, Cell::LstmCoupled] {
        check(
            Case {
                cell,
                peephole: true,
                proj_size: Some(3),
                dropout: 0.3,
                ..CASE
            },
            ALL,
        );
    }
    let gru = Case {
        cell: Cell::Gru,
        dropout: 0.5,
        ..CASE
    };
    check(gru, ALL);
}

#[test]
fn of_every_activation() {
    for (at, candidate) in Activation::ALL.into_iter().enumerate() {
        let other = |by: usize| Activation::ALL[(at + by) % Activation::ALL.len()];
        let functions = Activations {
            gate: other(3),
            candidate,
            output: other(1),
        };
        for cell in [Cell::Lstm, Cell::Gru, Cell::RnnTanh] {
            check(
                Case {
                    cell,
                    activations: Some([functions, cell.activations()]),
                    magnitude: 0.6,
                    seq_len: 3,
                    lengths: None,
                    ..CASE
                },
                ALL,
            );
        }
    }
}

#[test]
fn a_cut_is_a_sequence_in_two_pieces() {
    let case = Case {
        seq_len: 7,
        input_size: 3,
        hidden_size: 5,
        truncate: Some(4),
        ..SMALL
    };
    let inputs = case.inputs();
    let upstreams = Upstreams::new(&case);
    let arriving = Arriving {
        output: true,
        h_n: false,
        c_n: false,
    };
    let [whole, _] = reference::<f64>(&case, &inputs, &upstreams, arriving);
    let token = |width: u32| (case.batch * width) as usize;
    let (x, y) = (4 * token(case.input_size), 4 * token(case.hidden_size));
    let piece = |seq_len: u32| Case {
        seq_len,
        truncate: None,
        ..case
    };
    let mut first = case.inputs();
    first.input.truncate(x);
    let mut second = case.inputs();
    second.input.drain(..x);
    let end = first.reference::<f32>(&piece(4));
    (second.h_0, second.c_0) = (end.h_n, end.c_n);
    let part = |from: usize, to: usize| Upstreams {
        output: upstreams.output[from..to].to_vec(),
        h_n: Vec::new(),
        c_n: Vec::new(),
    };
    let all = upstreams.output.len();
    let [first, _] = reference::<f64>(&piece(4), &first, &part(0, y), arriving);
    let [second, _] = reference::<f64>(&piece(3), &second, &part(y, all), arriving);
    // input, h_0, c_0, norms, then the weights
    assert_eq!(whole[1], first[1]);
    assert_eq!(whole[2], first[2]);
    let near = |a: &f64, b: &f64| assert!((a - b).abs() < 1e-5, "{a}, {b}");
    for at in 4..whole.len() {
        let sums = first[at].iter().zip(&second[at]).map(|(a, b)| a + b);
        for (whole, sum) in whole[at].iter().zip(sums) {
            near(whole, &sum);
        }
    }
    for (whole, apart) in whole[0].iter().zip(first[0].iter().chain(&second[0])) {
        near(whole, apart);
    }
}
