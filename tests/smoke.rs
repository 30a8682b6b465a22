//! A few cases of every operation on the adapter as it is, in under a minute on any driver.
//!
//! `cargo xtask test` runs this on each of the system's own drivers; the full tests run on one.

mod common;

use common::attention::{Case, SMALL, check_on};
use common::{gpu, recurrent};
use gatefold::{Causal, Cell, Direction};

#[test]
fn attention() {
    let Some(gpu) = gpu() else { return };
    let as_it_is = std::slice::from_ref(gpu);
    check_on(as_it_is, SMALL);
    check_on(
        as_it_is,
        Case {
            batch: 1,
            num_heads: 4,
            num_kv_heads: 2,
            q_len: 65,
            kv_len: 97,
            causal: Causal::BottomRight,
            ..SMALL
        },
    );
    // too large for the tile of a CPU: the tile of a GPU, whatever the adapter
    check_on(
        as_it_is,
        Case {
            batch: 1,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 192,
            value_dim: 72,
            ..SMALL
        },
    );
}

#[test]
fn recurrence() {
    let Some(gpu) = gpu() else { return };
    for cell in [Cell::Lstm, Cell::Gru] {
        let case = recurrent::Case {
            cell,
            hidden_size: 24,
            direction: Direction::Bidirectional,
            lengths: Some(&[9, 4, 0]),
            ..recurrent::SMALL
        };
        recurrent::check_on(std::slice::from_ref(gpu), case);
    }
}
