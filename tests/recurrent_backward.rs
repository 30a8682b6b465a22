//! Gradients of RNN, LSTM and GRU on the device against the f64 reference, in every tier, variant and guise.

mod common;

use common::recurrent::{Case, SMALL};
use common::recurrent_backward::{
    ALL, Arriving, NONE, Upstreams, all_guises, check, check_arriving, check_in, check_some, run,
    some, variants,
};
use common::{bits, gpu};
use gatefold::{
    Activation, Activations, Capabilities, Cell, Direction, ElementType, Recurrent,
    RecurrentBackwardBuffers, RecurrentConfig, RecurrentGradients,
};

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
        check_some(Case {
            cell,
            magnitude,
            ..case
        });
    }
}

#[test]
fn plain() {
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru, Cell::GruResetBefore] {
        check(Case { cell, ..SMALL });
    }
}

#[test]
fn without_bias_and_states_in_reverse() {
    check_cells(Case {
        bias: false,
        states: false,
        direction: Direction::Reverse,
        ..SMALL
    });
}

#[test]
fn lengths_layers_and_both_directions() {
    check_cells(Case {
        num_layers: 2,
        direction: Direction::Bidirectional,
        lengths: Some(&[9, 0, 4, 1, 8]),
        batch: 5,
        ..SMALL
    });
    check_some(Case {
        num_layers: 3,
        lengths: Some(&[0, 9, 3]),
        direction: Direction::Reverse,
        ..SMALL
    });
}

#[test]
fn only_some_gradients_arrive() {
    for arriving in [
        Arriving { h_n: true, ..NONE },
        Arriving { c_n: true, ..NONE },
        Arriving {
            output: true,
            ..NONE
        },
    ] {
        for cell in [Cell::Lstm, Cell::Gru] {
            let case = Case {
                cell,
                num_layers: 2,
                lengths: Some(&[9, 0, 4]),
                ..SMALL
            };
            if cell == Cell::Lstm || arriving != (Arriving { c_n: true, ..NONE }) {
                check_arriving(case, arriving);
            }
        }
    }
}

#[test]
fn hidden_sizes_around_the_blocks() {
    for (hidden_size, cell) in [
        (1, Cell::Gru),
        (4, Cell::Lstm),
        (31, Cell::GruResetBefore),
        (64, Cell::Lstm),
        (131, Cell::Gru),
    ] {
        check_some(Case {
            cell,
            hidden_size,
            magnitude: 0.9,
            seq_len: 4,
            ..SMALL
        });
    }
}

#[test]
fn wide_states_are_streamed_or_stepped() {
    for (cell, hidden_size) in [(Cell::Lstm, 200), (Cell::Gru, 512)] {
        check_some(Case {
            cell,
            hidden_size,
            seq_len: 3,
            batch: 2,
            magnitude: 1.0,
            ..SMALL
        });
    }
}

#[test]
fn batches_around_the_tiles() {
    for batch in [1, 2, 5, 9] {
        check_some(Case {
            cell: CELLS[batch as usize % CELLS.len()],
            batch,
            magnitude: 0.9,
            ..SMALL
        });
    }
}

#[test]
fn long_sequences_take_several_dispatches() {
    check_some(Case {
        cell: Cell::Gru,
        seq_len: 515,
        batch: 2,
        hidden_size: 6,
        ..SMALL
    });
}

#[test]
fn chunks_and_pieces_of_steps() {
    let Some(gpu) = gpu() else { return };
    let [f16, bf16] = [ElementType::F16, ElementType::Bf16];
    for (cell, batch_first, elements) in [
        (Cell::Lstm, false, SMALL.elements),
        (Cell::GruResetBefore, false, SMALL.elements),
        (Cell::Gru, true, [bf16, f16]),
    ] {
        for direction in [Direction::Forward, Direction::Bidirectional] {
            let case = Case {
                cell,
                batch_first,
                elements,
                seq_len: 40,
                direction,
                num_layers: 2,
                lengths: Some(&[40, 0, 17]),
                ..SMALL
            };
            let few = Capabilities {
                storage_binding_size: 24 << 10,
                ..*gpu.context().capabilities()
            };
            let guises = [gpu.with_capabilities(few, Default::default())];
            check_in(&some(variants(&guises, &case), &case), case, ALL);
        }
    }
}

#[test]
fn saturated_gates_pass_nothing_on() {
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru] {
        check_some(Case {
            cell,
            magnitude: 6.0,
            seq_len: 3,
            ..SMALL
        });
    }
}

#[test]
fn nothing_depends_on_what_is_clipped() {
    check_cells(Case {
        clip: Some(0.3),
        ..SMALL
    });
}

#[test]
fn peepholes() {
    for cell in [Cell::Lstm, Cell::LstmCoupled] {
        check_some(Case {
            cell,
            clip: (cell == Cell::Lstm).then_some(0.8),
            peephole: true,
            direction: Direction::Bidirectional,
            num_layers: 2,
            lengths: Some(&[9, 0, 4]),
            ..SMALL
        });
    }
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
        check_some(Case {
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
fn projections() {
    for (proj_size, peephole) in [(1, false), (5, true), (13, false)] {
        check_some(Case {
            proj_size: Some(proj_size),
            peephole,
            num_layers: 2,
            direction: Direction::Bidirectional,
            lengths: Some(&[9, 0, 4]),
            ..SMALL
        });
    }
}

#[test]
fn dropout_between_layers() {
    check_some(Case {
        dropout: 0.4,
        num_layers: 3,
        cell: Cell::Gru,
        direction: Direction::Bidirectional,
        ..SMALL
    });
}

#[test]
fn no_gradient_passes_a_cut() {
    for (cell, direction, proj_size) in [
        (Cell::Lstm, Direction::Forward, None),
        (Cell::Lstm, Direction::Reverse, Some(4)),
        (Cell::GruResetBefore, Direction::Bidirectional, None),
    ] {
        check_some(Case {
            cell,
            direction,
            proj_size,
            truncate: Some(3),
            lengths: Some(&[9, 6, 4]),
            ..SMALL
        });
    }
}

#[test]
fn batches_may_come_first() {
    for (cell, num_layers, direction, lengths) in [
        (Cell::Lstm, 1, Direction::Forward, None),
        (Cell::Gru, 2, Direction::Bidirectional, Some(&[9, 0, 4][..])),
        (Cell::RnnTanh, 3, Direction::Reverse, None),
    ] {
        let case = Case {
            cell,
            batch_first: true,
            num_layers,
            direction,
            lengths,
            ..SMALL
        };
        check_some(case);
        check_some(Case {
            proj_size: (cell == Cell::Lstm).then_some(5),
            peephole: cell == Cell::Lstm,
            dropout: 0.3,
            truncate: Some(4),
            bias: false,
            states: false,
            ..case
        });
    }
    for (seq_len, batch) in [(0, 3), (3, 0), (1, 1)] {
        check_some(Case {
            batch_first: true,
            seq_len,
            batch,
            direction: Direction::Bidirectional,
            ..SMALL
        });
    }
}

#[test]
fn halves_are_widened_and_gradients_are_f32() {
    let [f32, f16, bf16] = [ElementType::F32, ElementType::F16, ElementType::Bf16];
    let all = [
        [f16, f16],
        [bf16, bf16],
        [f16, f32],
        [f32, bf16],
        [f32, f16],
        [bf16, f16],
    ];
    check(Case {
        elements: [bf16, f16],
        batch_first: true,
        ..SMALL
    });
    for (elements, cell) in all.into_iter().zip(CELLS) {
        let is_lstm = cell.has_cell_state();
        let case = Case {
            cell,
            elements,
            magnitude: 0.9,
            // vectors and rows of odd lengths: their halves share words
            lengths: Some(&[9, 0, 5]),
            ..SMALL
        };
        check_some(case);
        check_some(Case {
            num_layers: 2,
            direction: Direction::Bidirectional,
            batch_first: true,
            proj_size: is_lstm.then_some(5),
            peephole: is_lstm,
            lengths: None,
            ..case
        });
    }
}

#[test]
fn neither_storage_nor_order_changes_a_bit() {
    let Some(guises) = all_guises() else { return };
    let [f32, f16, bf16] = [ElementType::F32, ElementType::F16, ElementType::Bf16];
    for (cell, elements, lengths) in [
        (Cell::Lstm, [bf16, f16], None),
        (Cell::Gru, [f16, bf16], Some(&[9, 0, 4][..])),
        (Cell::GruResetBefore, [f16, f16], None),
    ] {
        let stored = Case {
            cell,
            elements,
            batch_first: true,
            num_layers: 2,
            direction: Direction::Bidirectional,
            lengths,
            ..SMALL
        };
        let plain = Case {
            elements: [f32; 2],
            batch_first: false,
            ..stored
        };
        let (inputs, upstreams) = (stored.inputs(), Upstreams::new(&stored));
        for (guise, config, how) in some(variants(guises, &stored), &stored) {
            let plain_config = RecurrentConfig {
                element: f32,
                weights: f32,
                batch_first: false,
                ..config
            };
            let one = run(&guise, &stored, config, &inputs, &upstreams, ALL);
            let other = run(&guise, &plain, plain_config, &inputs, &upstreams, ALL);
            for ((name, _, one), (_, _, other)) in one.iter().zip(&other) {
                assert_eq!(bits(one), bits(other), "{name}: {how}\n{stored:?}");
            }
        }
    }
}

#[test]
fn nothing_to_do() {
    for cell in [Cell::Lstm, Cell::GruResetBefore] {
        check_some(Case {
            cell,
            seq_len: 0,
            direction: Direction::Bidirectional,
            num_layers: 2,
            ..SMALL
        });
        check_some(Case {
            cell,
            batch: 0,
            ..SMALL
        });
        check_some(Case {
            cell,
            seq_len: 1,
            batch: 1,
            input_size: 1,
            hidden_size: 1,
            ..SMALL
        });
    }
}

#[test]
fn a_sequence_that_is_not_finite_stays_alone() {
    if gpu().is_none() {
        return;
    }
    let case = Case {
        lengths: Some(&[9, 7, 5]),
        ..SMALL
    };
    let inputs = case.inputs();
    let upstreams = Upstreams::new(&case);
    let width = case.input_size as usize;
    let of_row = |values: &[f32], row: usize| -> Vec<u32> {
        let rows = values.chunks(width).skip(row).step_by(3);
        rows.flat_map(bits).collect()
    };
    for (guise, config, how) in some(variants(all_guises().unwrap(), &case), &case) {
        let run = |inputs| run(&guise, &case, config, inputs, &upstreams, ALL);
        let good = run(&inputs);
        let mut bad = case.inputs();
        // in the second row, and in what lies behind the end of the third one
        bad.input[3 * width + width] = f32::NAN;
        bad.input[6 * 3 * width + 2 * width] = f32::NAN;
        let bad = run(&bad);
        for row in [0, 2] {
            assert_eq!(
                of_row(&good[0].2, row),
                of_row(&bad[0].2, row),
                "{how}, row {row}"
            );
        }
    }
}

#[test]
fn what_lies_behind_an_end_reaches_no_gradient() {
    if gpu().is_none() {
        return;
    }
    let [f32, f16, bf16] = [ElementType::F32, ElementType::F16, ElementType::Bf16];
    for (batch_first, element, checkpoint_every) in [
        (false, f32, None),
        (true, f32, Some(4)),
        (true, bf16, None),
        (false, f16, None),
    ] {
        let case = Case {
            batch_first,
            elements: [element, f32],
            checkpoint_every,
            lengths: Some(&[9, 7, 5]),
            ..SMALL
        };
        let (inputs, upstreams) = (case.inputs(), Upstreams::new(&case));
        let mut bad = case.inputs();
        let mut bad_upstreams = Upstreams::new(&case);
        let (width, hidden) = (case.input_size as usize, case.hidden_size as usize);
        bad.input[(6 * 3 + 2) * width..][..width].fill(f32::NAN);
        bad_upstreams.output[(8 * 3 + 1) * hidden..][..hidden].fill(f32::NAN);
        for (guise, config, how) in some(variants(all_guises().unwrap(), &case), &case) {
            let good = run(&guise, &case, config, &inputs, &upstreams, ALL);
            let same = run(&guise, &case, config, &bad, &bad_upstreams, ALL);
            for ((name, _, good), (_, _, same)) in good.iter().zip(&same) {
                assert_eq!(bits(good), bits(same), "{name}: {how}\n{case:?}");
            }
        }
    }
}

#[test]
fn mistakes_are_named() {
    let Some(gpu) = gpu() else { return };
    let op = |gradients| {
        let config = RecurrentConfig {
            gradients,
            ..SMALL.config(None, None)
        };
        Recurrent::new(gpu.context(), config).unwrap()
    };
    let buffer = gpu.zeros("tensor", 1 << 16).unwrap();
    let buffers = RecurrentBackwardBuffers::new(
        buffer.slice(..),
        buffer.slice(..),
        buffer.slice(..),
        buffer.slice(..),
    );
    let refused = |op: &Recurrent, buffers| {
        let error = op.bind_backward(SMALL.shape(), buffers).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        refused(&op(false), buffers),
        "weights: were packed without what the backward pass reads (gradients)"
    );
    let own = RecurrentGradients {
        weight_ih: buffer.slice(..),
        weight_hh: buffer.slice(..),
        bias: None,
        peephole: None,
        weight_hr: None,
    };
    let two = RecurrentBackwardBuffers {
        grad_weights: &[own, own],
        ..buffers
    };
    assert_eq!(
        refused(&op(true), two),
        "number of grad_weights is 2, expected num_layers * num_directions = 1, or none"
    );
    let peephole = RecurrentBackwardBuffers {
        grad_weights: &[RecurrentGradients {
            peephole: Some(buffer.slice(..)),
            ..own
        }],
        ..buffers
    };
    assert_eq!(
        refused(&op(true), peephole),
        "grad_peephole: the configuration has none"
    );
}
