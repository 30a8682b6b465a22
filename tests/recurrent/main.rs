//! RNN, LSTM and GRU on the device against the f64 reference, in every tier, variant and guise of the device.

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod extremes;
mod options;
mod shapes;

use common::recurrent::{Case, check};
use gatefold::Cell;

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
