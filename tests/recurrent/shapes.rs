//! Cells, directions, layers and sizes.

use super::{CELLS, check_cells};
use crate::common::recurrent::{Case, SMALL, check};
use gatefold::{Cell, Direction};

#[test]
fn plain() {
    check_cells(SMALL);
}

#[test]
fn without_bias_and_states() {
    check_cells(Case {
        bias: false,
        states: false,
        ..SMALL
    });
}

#[test]
fn reverse_and_both_directions() {
    for direction in [Direction::Reverse, Direction::Bidirectional] {
        check_cells(Case { direction, ..SMALL });
    }
}

#[test]
fn layers_read_the_layer_before() {
    check_cells(Case {
        num_layers: 2,
        ..SMALL
    });
    check(Case {
        num_layers: 3,
        direction: Direction::Bidirectional,
        ..SMALL
    });
}

#[test]
fn hidden_sizes_around_the_blocks() {
    for hidden_size in [1, 4, 8, 9, 33, 64, 100] {
        let cell = CELLS[hidden_size as usize % CELLS.len()];
        check(Case {
            cell,
            hidden_size,
            magnitude: 0.9,
            ..SMALL
        });
    }
}

/// Several tiles of rows, of units and of factors on matrix units, the last of each in part.
#[test]
fn more_rows_than_a_tile() {
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::GruResetBefore] {
        check(Case {
            cell,
            hidden_size: 137,
            seq_len: 3,
            batch: 19,
            magnitude: 1.0,
            lengths: Some(&[3, 1, 0, 2, 3, 3, 1, 2, 3, 3, 3, 0, 1, 3, 2, 3, 3, 3, 1]),
            ..SMALL
        });
    }
}

#[test]
fn wide_states_leave_the_registers() {
    check(Case {
        hidden_size: 200,
        seq_len: 3,
        batch: 2,
        magnitude: 1.0,
        ..SMALL
    });
    check(Case {
        cell: Cell::Gru,
        hidden_size: 320,
        seq_len: 3,
        batch: 1,
        magnitude: 1.0,
        ..SMALL
    });
}

#[test]
fn batches_around_the_tiles() {
    for batch in [1, 2, 4, 5, 9] {
        check(Case {
            cell: CELLS[batch as usize % CELLS.len()],
            batch,
            magnitude: 0.9,
            ..SMALL
        });
    }
}

#[test]
fn long_sequences_take_several_dispatches() {
    check(Case {
        cell: Cell::Gru,
        seq_len: 515,
        batch: 2,
        hidden_size: 6,
        ..SMALL
    });
}

#[test]
fn lengths_end_each_sequence_by_itself() {
    let lengths: Option<&'static [u32]> = Some(&[9, 0, 4, 1, 8]);
    for direction in [
        Direction::Forward,
        Direction::Reverse,
        Direction::Bidirectional,
    ] {
        check_cells(Case {
            lengths,
            batch: 5,
            direction,
            ..SMALL
        });
        check(Case {
            lengths,
            batch: 5,
            direction,
            num_layers: 2,
            ..SMALL
        });
    }
}
