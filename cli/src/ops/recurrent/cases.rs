//! What `verify` runs.

use gatefold::{Cell, Direction, ElementType, Tier};

use super::Recurrent;
use super::grid::problem;
use crate::ops::Case;

/// Of batch, seq_len, input_size, hidden_size, layers.
const SMALL: [u32; 5] = [3, 9, 7, 13, 1];

/// Every cell in every tier, direction and kind of length, small enough for a CPU. Few different hidden sizes:
/// each is a kernel to compile.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let cells = [
        (Cell::RnnTanh, ""),
        (Cell::RnnRelu, "relu_"),
        (Cell::Lstm, ""),
        (Cell::LstmCoupled, "coupled_"),
        (Cell::Gru, ""),
        (Cell::GruResetBefore, "reset_before_"),
    ];
    for (cell, prefix) in cells {
        for tier in [Tier::Stepped, Tier::Resident] {
            for (name, mut problem) in problems(cell) {
                problem.config.tier = Some(tier);
                // weights in registers: each row of the matrix is unrolled
                let unrolled =
                    tier == Tier::Resident && (100..512).contains(&problem.config.hidden_size);
                cases.push(Case {
                    name: format!("{}/{prefix}{name}", tier.name()),
                    problem: Box::new(problem),
                    slow_to_compile: unrolled,
                });
            }
        }
        // wide enough for several workgroups, which wait for each other
        let mut shared = problem(cell, [3, 9, 7, 70, 1], Direction::Bidirectional);
        shared.config.tier = Some(Tier::Persistent);
        cases.push(Case {
            name: format!("{}/{prefix}hidden_70", Tier::Persistent.name()),
            problem: Box::new(shared),
            slow_to_compile: false,
        });
    }
    cases
}

fn problems(cell: Cell) -> Vec<(&'static str, Recurrent)> {
    let states = |mut problem: Recurrent| {
        problem.given.h_0 = true;
        problem.given.c_0 = cell.has_cell_state();
        problem
    };
    let mut no_bias = problem(cell, [9, 4, 7, 13, 1], Direction::Forward);
    no_bias.bias = false;
    let mut ragged = states(problem(cell, [3, 17, 7, 13, 2], Direction::Bidirectional));
    ragged.given.lengths = true;
    let mut all = vec![
        ("states", states(problem(cell, SMALL, Direction::Forward))),
        ("no_bias", no_bias),
        ("two_layers_bidirectional_lengths", ragged),
    ];
    let mut gradients = ragged;
    gradients.with_gradients([true, true, cell.has_cell_state()]);
    let mut checkpoints = gradients;
    checkpoints.config.checkpoint_every = Some(4);
    let mut last_state = states(problem(cell, SMALL, Direction::Reverse));
    last_state.with_gradients([false, true, false]);
    all.extend([
        ("gradients_two_layers_bidirectional_lengths", gradients),
        ("gradients_of_the_last_state", last_state),
        ("gradients_from_checkpoints", checkpoints),
    ]);
    if matches!(cell, Cell::RnnRelu | Cell::LstmCoupled) {
        return all;
    }
    if cell == Cell::Lstm {
        for (element, name, of_gradients) in [
            (ElementType::F16, "f16", "gradients_f16_batch_first"),
            (
                ElementType::Bf16,
                "bf16",
                "gradients_bf16_lengths_batch_first",
            ),
        ] {
            let mut halves = problem(cell, [3, 9, 7, 13, 2], Direction::Forward);
            (halves.config.element, halves.config.weights) = (element, element);
            all.push((name, halves));
            halves.with_gradients([true; 3]);
            halves.set_batch_first(true);
            halves.given.lengths = element == ElementType::Bf16;
            all.push((of_gradients, halves));
        }
        let mut projected = states(problem(cell, [3, 17, 7, 13, 2], Direction::Bidirectional));
        projected.config.proj_size = Some(5);
        projected.given.lengths = true;
        all.push(("projection_lengths", projected));
    }
    let mut dropout = problem(cell, [3, 9, 7, 13, 3], Direction::Forward);
    dropout.config.dropout = 0.3;
    dropout.shape.seed = 7 << 32 | 5;
    let mut clip = problem(cell, SMALL, Direction::Forward);
    clip.config.clip = Some(0.3);
    all.extend([
        (
            "one_step",
            states(problem(cell, [1, 1, 7, 13, 1], Direction::Forward)),
        ),
        ("reverse", states(problem(cell, SMALL, Direction::Reverse))),
        (
            "long",
            problem(cell, [1, 300, 7, 13, 1], Direction::Forward),
        ),
        ("clip", clip),
        ("dropout_three_layers", dropout),
        (
            "hidden_128",
            problem(cell, [2, 12, 40, 128, 1], Direction::Forward),
        ),
        (
            "hidden_640",
            problem(cell, [1, 4, 40, 640, 1], Direction::Forward),
        ),
    ]);
    all
}
