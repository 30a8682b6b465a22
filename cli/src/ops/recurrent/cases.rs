//! What `verify` and `info` look at.

use gatefold::{Cell, Direction, RecurrentConfig, Tier};

use super::Recurrent;
use crate::ops::{Case, Problem};

/// Every cell in every tier; few different hidden sizes: each is a kernel to compile.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cell in [Cell::RnnTanh, Cell::RnnRelu, Cell::Lstm, Cell::Gru] {
        for tier in [Tier::Stepped, Tier::Resident] {
            let small = RecurrentConfig {
                cell,
                input_size: 7,
                hidden_size: 13,
                tier: Some(tier),
                ..Default::default()
            };
            let states = |problem: Recurrent| Recurrent {
                h_0: true,
                c_0: cell == Cell::Lstm,
                ..problem
            };
            let deep = RecurrentConfig {
                num_layers: 2,
                direction: Direction::Bidirectional,
                ..small
            };
            let ragged = Recurrent {
                lengths: Some(vec![17, 0, 5]),
                ..states(Recurrent::new(deep, 17, 3))
            };
            let no_bias = Recurrent {
                bias: false,
                batch_first: true,
                ..Recurrent::new(small, 9, 2)
            };
            let cell = match cell {
                Cell::RnnRelu => "relu_",
                _ => "",
            };
            let name = |name: &str| format!("{}/{cell}{name}", tier.name());
            let problems = [
                ("one_step", states(Recurrent::new(small, 1, 1))),
                ("states", states(Recurrent::new(small, 9, 3))),
                ("no_bias_batch_first", no_bias),
                ("two_layers_bidirectional_lengths", ragged),
            ];
            cases.extend(problems.map(|(stem, problem)| Case {
                name: name(stem),
                problem: Box::new(problem),
                slow_to_compile: false,
            }));
            let wide = RecurrentConfig {
                input_size: 40,
                hidden_size: 128,
                ..small
            };
            cases.push(Case {
                name: name("hidden_128"),
                problem: Box::new(Recurrent::new(wide, 12, 2)),
                slow_to_compile: true,
            });
        }
    }
    cases
}

pub fn showcase() -> Vec<Box<dyn Problem>> {
    let cells = [Cell::RnnTanh, Cell::Lstm, Cell::Gru];
    cells
        .into_iter()
        .flat_map(|cell| [(cell, 1), (cell, 16)])
        .map(|(cell, batch)| {
            let config = RecurrentConfig {
                cell,
                input_size: 256,
                hidden_size: 256,
                ..Default::default()
            };
            Box::new(Recurrent::new(config, 64, batch)) as Box<dyn Problem>
        })
        .collect()
}
