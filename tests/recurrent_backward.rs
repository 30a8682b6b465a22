//! Gradients of RNN, LSTM and GRU: those of the reference against finite differences, those of the device against
//! the reference's, in every tier, variant and guise.

mod common;

use common::recurrent::{Case, SMALL};
use common::recurrent_backward::{ALL, Arriving, check, check_arriving};
use gatefold::{Cell, Direction};

const CELLS: [Cell; 6] = [
    Cell::RnnTanh,
    Cell::RnnRelu,
    Cell::Lstm,
    Cell::LstmCoupled,
    Cell::Gru,
    Cell::GruResetBefore,
];

fn check_cells(case: Case) {
    for cell in CELLS {
        // a relu network has no bound: its states must not grow from step to step
        let magnitude = if cell == Cell::RnnRelu {
            case.magnitude.min(0.9)
        } else {
            case.magnitude
        };
        check(Case {
            cell,
            magnitude,
            ..case
        });
    }
}

#[test]
fn plain() {
    check_cells(SMALL);
}
