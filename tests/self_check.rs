//! The check of imported weights: each mistake is made, and named.

mod common;

use common::Random;
use common::recurrent::{Case, SMALL};
use gatefold::reference::convert;
use gatefold::reference::recurrent::{Initial, SelfCheck, Weights, recurrent, self_check};
use gatefold::{Cell, Direction};

const CASE: Case = Case {
    cell: Cell::Lstm,
    input_size: 3,
    hidden_size: 4,
    seq_len: 4,
    batch: 2,
    states: false,
    ..SMALL
};

/// What the check says of the weights of `case` after `break_it`, with the true answer.
fn check(case: Case, break_it: impl Fn(Weights<f64>) -> Weights<f64>) -> SelfCheck {
    let inputs = case.inputs();
    let answer = inputs.reference::<f64>(&case).output;
    let weights: Vec<_> = inputs.weights.iter().map(Weights::convert).collect();
    let broken: Vec<_> = weights.into_iter().map(break_it).collect();
    let initial = Initial {
        h_0: None,
        c_0: None,
        lengths: None,
    };
    let input = convert(&inputs.input);
    self_check(&case.problem(), &input, &broken, initial, &answer, 1e-5)
}

/// The blocks of gates in another order: block `i` becomes block `order[i]`.
fn reordered(values: &[f64], order: &[usize]) -> Vec<f64> {
    let block = values.len() / order.len();
    let mut to = values.to_vec();
    for (from, &place) in order.iter().enumerate() {
        to[place * block..][..block].copy_from_slice(&values[from * block..][..block]);
    }
    to
}

fn of_gates(order: &'static [usize]) -> impl Fn(Weights<f64>) -> Weights<f64> {
    move |w| Weights {
        weight_ih: reordered(&w.weight_ih, order),
        weight_hh: reordered(&w.weight_hh, order),
        bias_ih: reordered(&w.bias_ih, order),
        bias_hh: reordered(&w.bias_hh, order),
        ..w
    }
}

fn transposed(values: &[f64], columns: usize) -> Vec<f64> {
    let rows = values.len() / columns;
    let at = |i: usize| values[i % rows * columns + i / rows];
    (0..values.len()).map(at).collect()
}

fn first(found: &SelfCheck) -> String {
    assert!(!found.agrees && found.error > 1e-3, "{found:?}");
    assert!(found.telling, "{found:?}");
    found.mistakes[0].to_string()
}

#[test]
fn right_weights_agree_and_the_answer_tells() {
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru, Cell::GruResetBefore] {
        let found = check(Case { cell, ..CASE }, |w| w);
        assert!(found.agrees && found.telling && found.mistakes.is_empty());
        assert!(found.error < 1e-12);
    }
}

#[test]
fn orders_of_gates_are_named() {
    let lstm = |order| first(&check(CASE, of_gates(order)));
    assert_eq!(lstm(&[0, 2, 3, 1]), "the gates are in ONNX's i o f c");
    assert_eq!(lstm(&[0, 2, 1, 3]), "the gates are in haste's i g f o");
    assert_eq!(
        lstm(&[0, 1, 3, 2]),
        "the gates are in Core ML's and WebNN's i f o g"
    );
    assert_eq!(lstm(&[3, 0, 1, 2]), "the gates are in the order f g o i");
    let gru = Case {
        cell: Cell::Gru,
        num_layers: 2,
        direction: Direction::Bidirectional,
        ..CASE
    };
    assert_eq!(
        first(&check(gru, of_gates(&[1, 0, 2]))),
        "the gates are in ONNX's and Keras's z r h"
    );
    assert_eq!(
        first(&check(gru, of_gates(&[2, 0, 1]))),
        "the gates are in the order z n r"
    );
}

#[test]
fn transposed_matrices_swapped_biases_and_the_other_reset_are_named() {
    let found = check(CASE, |w| Weights {
        weight_ih: transposed(&w.weight_ih, 3),
        ..w
    });
    assert_eq!(first(&found), "weight_ih is transposed");
    let gru = Case {
        cell: Cell::Gru,
        ..CASE
    };
    let found = check(gru, |w| Weights {
        bias_ih: w.bias_hh,
        bias_hh: w.bias_ih,
        ..w
    });
    assert_eq!(first(&found), "bias_ih and bias_hh have changed places");
    // Keras: both kernels transposed, z r h
    let found = check(gru, |w| {
        let w = of_gates(&[1, 0, 2])(w);
        Weights {
            weight_ih: transposed(&w.weight_ih, 3),
            weight_hh: transposed(&w.weight_hh, 4),
            ..w
        }
    });
    assert_eq!(
        first(&found),
        "the gates are in ONNX's and Keras's z r h, weight_ih is transposed, weight_hh is transposed"
    );
    // the answer of the other cell
    for (cell, other, words) in [
        (
            Cell::Gru,
            Cell::GruResetBefore,
            "the reset is before the product",
        ),
        (
            Cell::GruResetBefore,
            Cell::Gru,
            "the reset is after the product",
        ),
    ] {
        let inputs = case_of(cell).inputs();
        let weights: Vec<_> = inputs.weights.iter().map(Weights::convert).collect();
        let initial = Initial {
            h_0: None,
            c_0: None,
            lengths: None,
        };
        let input = convert(&inputs.input);
        let answer = recurrent(&case_of(other).problem(), &input, &weights, initial).output;
        let problem = case_of(cell).problem();
        let found = self_check(&problem, &input, &weights, initial, &answer, 1e-5);
        assert_eq!(first(&found), words);
    }
}

fn case_of(cell: Cell) -> Case {
    Case { cell, ..CASE }
}

#[test]
fn noise_is_not_explained() {
    let noise = Random::new(5).normals(48, 1.0);
    let found = check(CASE, |w| Weights {
        weight_ih: convert(&noise),
        ..w
    });
    assert!(!found.agrees && found.mistakes.is_empty());
    let found = check(CASE, |w| Weights {
        bias_ih: vec![f64::NAN; w.bias_ih.len()],
        ..w
    });
    assert!(!found.agrees && found.mistakes.is_empty());
}

#[test]
fn constant_weights_tell_nothing() {
    let case = CASE;
    let inputs = case.inputs();
    let constant = |values: &[f32]| vec![0.3; values.len()];
    let weights: Vec<Weights<f64>> = inputs
        .weights
        .iter()
        .map(|w| Weights {
            weight_ih: constant(&w.weight_ih),
            weight_hh: constant(&w.weight_hh),
            bias_ih: constant(&w.bias_ih),
            bias_hh: constant(&w.bias_hh),
            peephole: vec![],
            weight_hr: vec![],
        })
        .collect();
    let initial = Initial {
        h_0: None,
        c_0: None,
        lengths: None,
    };
    let input = convert(&inputs.input);
    let answer = recurrent(&case.problem(), &input, &weights, initial).output;
    let found = self_check(&case.problem(), &input, &weights, initial, &answer, 1e-5);
    assert!(found.agrees && !found.telling);
}
