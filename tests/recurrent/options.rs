//! Options, and how tensors are stored.

use super::{CELLS, check_cells};
use crate::common::recurrent::{Case, SMALL, check};
use gatefold::{Activation, Activations, Cell, Direction, ElementType};

#[test]
fn clip_bounds_the_activations() {
    check_cells(Case {
        clip: Some(0.3),
        ..SMALL
    });
}

#[test]
fn activations_of_each_direction() {
    for (at, gate) in Activation::ALL.into_iter().enumerate() {
        let other = |by: usize| Activation::ALL[(at + by) % Activation::ALL.len()];
        let forward = Activations {
            // the state of unbounded gates would grow from step to step
            gate: Activation::HardSigmoid,
            candidate: gate,
            output: other(1),
        };
        let backward = Activations {
            gate: Activation::Sigmoid,
            candidate: other(2),
            output: Activation::Softsign,
        };
        check(Case {
            cell: CELLS[at % CELLS.len()],
            activations: Some([forward, backward]),
            direction: Direction::Bidirectional,
            clip: (at % 3 == 0).then_some(0.7),
            magnitude: 0.5,
            seq_len: 4,
            ..SMALL
        });
    }
}

#[test]
fn peepholes_look_at_the_cell_state() {
    for cell in [Cell::Lstm, Cell::LstmCoupled] {
        for (clip, bias) in [(None, true), (Some(0.4), false)] {
            check(Case {
                cell,
                clip,
                bias,
                peephole: true,
                direction: Direction::Bidirectional,
                num_layers: 2,
                lengths: Some(&[9, 0, 4]),
                ..SMALL
            });
        }
    }
}

#[test]
fn projections_shorten_the_state() {
    for (cell, hidden_size, proj_size) in [
        (Cell::Lstm, 13, 5),
        (Cell::LstmCoupled, 13, 13),
        (Cell::Lstm, 70, 33),
    ] {
        check(Case {
            cell,
            hidden_size,
            proj_size: Some(proj_size),
            direction: Direction::Bidirectional,
            num_layers: 2,
            lengths: Some(&[9, 0, 4, 1, 8]),
            batch: 5,
            peephole: true,
            bias: false,
            clip: Some(1.0),
            ..SMALL
        });
    }
    for (hidden_size, proj_size) in [(1, 1), (200, 8)] {
        check(Case {
            hidden_size,
            proj_size: Some(proj_size),
            ..SMALL
        });
    }
    check(Case {
        proj_size: Some(3),
        seq_len: 0,
        direction: Direction::Bidirectional,
        num_layers: 2,
        ..SMALL
    });
    check(Case {
        proj_size: Some(3),
        seq_len: 300,
        batch: 1,
        ..SMALL
    });
}

#[test]
fn batches_may_come_first() {
    for (cell, num_layers, direction, lengths, dropout) in [
        (Cell::Lstm, 1, Direction::Forward, None, 0.0),
        (
            Cell::Gru,
            2,
            Direction::Bidirectional,
            Some(&[9, 0, 4][..]),
            0.0,
        ),
        (Cell::RnnTanh, 3, Direction::Reverse, None, 0.3),
    ] {
        check(Case {
            cell,
            batch_first: true,
            num_layers,
            direction,
            lengths,
            dropout,
            elements: [ElementType::F16, ElementType::F32],
            ..SMALL
        });
    }
    check(Case {
        batch_first: true,
        seq_len: 0,
        ..SMALL
    });
}

#[test]
fn halves_are_widened_and_summed_in_f32() {
    let [f32, f16, bf16] = [ElementType::F32, ElementType::F16, ElementType::Bf16];
    for (elements, cell) in [
        ([f16, f16], Cell::Lstm),
        ([bf16, bf16], Cell::Gru),
        ([f16, f32], Cell::RnnTanh),
        ([f32, bf16], Cell::Lstm),
    ] {
        let peephole = cell == Cell::Lstm;
        check(Case {
            cell,
            elements,
            num_layers: 2,
            direction: Direction::Bidirectional,
            proj_size: peephole.then_some(5),
            peephole,
            ..SMALL
        });
    }
}

#[test]
fn dropout_lies_between_the_layers() {
    for (cell, num_layers, direction, proj_size) in [
        (Cell::Gru, 2, Direction::Bidirectional, None),
        (Cell::Lstm, 3, Direction::Forward, Some(5)),
        (Cell::RnnTanh, 4, Direction::Reverse, None),
        // nothing between the layers
        (Cell::Lstm, 1, Direction::Forward, None),
    ] {
        for dropout in [0.3, 0.9] {
            check(Case {
                cell,
                num_layers,
                direction,
                proj_size,
                dropout,
                lengths: Some(&[9, 0, 4]),
                ..SMALL
            });
        }
    }
}

#[test]
fn dropout_drops_as_many_as_asked_and_keeps_the_mean() {
    // a layer that lets its input through, and one that adds up what reaches it
    let case = Case {
        cell: Cell::RnnRelu,
        num_layers: 2,
        dropout: 0.25,
        ..SMALL
    };
    let problem = case.problem();
    let factors = (0..40_000).map(|element| problem.dropout_factor::<f64>(0, element));
    let factors: Vec<f64> = factors.collect();
    let kept = factors.iter().filter(|&&factor| factor > 0.0).count();
    assert!((29_600..30_400).contains(&kept), "{kept} of 40000");
    let mean = factors.iter().sum::<f64>() / 40_000.0;
    assert!((mean - 1.0).abs() < 0.02, "{mean}");
    let other = (0..40_000).map(|element| problem.dropout_factor::<f64>(1, element));
    let same = factors.iter().zip(other).filter(|(a, b)| **a == *b).count();
    assert!((24_500..25_500).contains(&same), "{same} of 40000");
}
