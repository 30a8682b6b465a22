//! RNN, LSTM and GRU on the device against the f64 reference, in every tier, variant and guise of the device.

mod common;

use common::recurrent::{Case, SMALL, check, pack, run, run_keeping, variants};
use common::{Output, bits, gpu, guises};
use gatefold::{
    Activation, Activations, Capabilities, Cell, Direction, ElementType, Recurrent,
    RecurrentBuffers, RecurrentConfig, RecurrentShape, Tier,
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

#[test]
fn saturated_gates_stay_finite() {
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru] {
        check(Case {
            cell,
            magnitude: 300.0,
            seq_len: 3,
            ..SMALL
        });
    }
}

#[test]
fn clip_bounds_the_activations() {
    check_cells(Case {
        clip: Some(0.3),
        ..SMALL
    });
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
fn nothing_to_do() {
    check_cells(Case {
        seq_len: 0,
        direction: Direction::Bidirectional,
        num_layers: 2,
        ..SMALL
    });
    check_cells(Case { batch: 0, ..SMALL });
    check_cells(Case {
        seq_len: 1,
        batch: 1,
        input_size: 1,
        hidden_size: 1,
        ..SMALL
    });
}

#[test]
fn chunks_of_steps_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for direction in [Direction::Forward, Direction::Bidirectional] {
        let case = Case {
            seq_len: 50,
            direction,
            elements: [ElementType::F16, ElementType::F32],
            num_layers: 2,
            dropout: 0.4,
            ..SMALL
        };
        let inputs = case.inputs();
        for (guise, config, how) in variants(&guises(gpu), &case) {
            let whole = run(&guise, &case, config, &inputs);
            let few = Capabilities {
                storage_binding_size: 16 << 10,
                ..*guise.context().capabilities()
            };
            let cut = gpu.with_capabilities(few, Default::default());
            let dispatches = |capabilities| {
                config
                    .plan(capabilities, case.shape(), case.given())
                    .unwrap()
                    .dispatches
                    .len()
            };
            assert!(dispatches(&few) > dispatches(guise.context().capabilities()));
            for (whole, cut) in whole.iter().zip(run(&cut, &case, config, &inputs)) {
                assert_eq!(bits(whole), bits(&cut), "{how}");
            }
        }
    }
}

#[test]
fn what_is_kept_for_the_backward_pass_changes_no_bit() {
    let Some(gpu) = gpu() else { return };
    for cell in CELLS {
        let case = Case {
            cell,
            seq_len: 30,
            direction: Direction::Bidirectional,
            num_layers: 2,
            lengths: Some(&[30, 0, 17]),
            magnitude: 0.9,
            ..SMALL
        };
        let inputs = case.inputs();
        for (guise, config, how) in variants(&guises(gpu), &case) {
            let plain = run(&guise, &case, config, &inputs);
            let few = Capabilities {
                storage_binding_size: 24 << 10,
                ..*guise.context().capabilities()
            };
            for guise in [gpu.with_capabilities(few, Default::default()), guise] {
                let kept = run_keeping(&guise, &case, config, &inputs);
                for (plain, kept) in plain.iter().zip(kept) {
                    assert_eq!(bits(plain), bits(&kept), "{how}");
                }
            }
        }
    }
}

#[test]
fn single_steps_equal_the_stepped_sequence() {
    let Some(gpu) = gpu() else { return };
    for cell in CELLS {
        let case = Case {
            cell,
            num_layers: 2,
            magnitude: 0.9,
            ..SMALL
        };
        let inputs = case.inputs();
        let config = case.config(Some(Tier::Stepped), None);
        let whole = run(gpu, &case, config, &inputs);

        let op = Recurrent::new(gpu.context(), config).unwrap();
        let packed = pack(gpu, &op, &inputs);
        let is_lstm = cell.has_cell_state();
        let token = (case.batch * case.hidden_size) as usize;
        let output = Output::new(gpu, token);
        let scratch_size = op.scratch_size(RecurrentShape {
            seq_len: 1,
            batch: case.batch,
            seed: 0,
        });
        let scratch = gpu.zeros("scratch", scratch_size.unwrap()).unwrap();
        // the state swaps sides from step to step
        let h = [0, 1].map(|_| gpu.upload("h", &inputs.h_0).unwrap());
        let c = [0, 1].map(|_| gpu.upload("c", &inputs.c_0).unwrap());
        for (step, x) in inputs
            .input
            .chunks(inputs.input.len() / case.seq_len as usize)
            .enumerate()
        {
            let x = gpu.upload("input", x).unwrap();
            let (from, to) = (step % 2, (step + 1) % 2);
            let buffers = RecurrentBuffers {
                h_0: Some(h[from].slice(..)),
                h_n: Some(h[to].slice(..)),
                c_0: is_lstm.then(|| c[from].slice(..)),
                c_n: is_lstm.then(|| c[to].slice(..)),
                ..RecurrentBuffers::new(
                    x.slice(..),
                    packed.slice(..),
                    output.buffer.slice(..),
                    scratch.slice(..),
                )
            };
            let bound = op.bind_step(case.batch, buffers).unwrap();
            gpu.run(|pass| {
                bound.record(pass);
                Ok(())
            })
            .unwrap();
            assert_eq!(
                bits(&output.read(gpu)),
                bits(&whole[0][step * token..][..token]),
                "{cell:?}"
            );
        }
    }
}

#[test]
fn mistakes_are_named() {
    let Some(gpu) = gpu() else { return };
    let new = |config| {
        Recurrent::new(gpu.context(), config)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        new(RecurrentConfig {
            hidden_size: 0,
            ..Default::default()
        }),
        "hidden_size is 0, expected 1 to 16384"
    );
    let wide = RecurrentConfig {
        hidden_size: 16_384,
        tier: Some(Tier::Resident),
        ..Default::default()
    };
    assert!(new(wide).starts_with("max_compute_workgroup_storage_size is "));
    let op = Recurrent::new(
        gpu.context(),
        RecurrentConfig {
            cell: Cell::Gru,
            ..SMALL.config(None, None)
        },
    )
    .unwrap();
    let buffer = gpu.zeros("tensor", 1 << 16).unwrap();
    let other = gpu.zeros("tensor", 1 << 16).unwrap();
    let buffers = RecurrentBuffers::new(
        buffer.slice(..),
        buffer.slice(..),
        other.slice(..32768),
        other.slice(32768..),
    );
    let with_c = RecurrentBuffers {
        c_0: Some(buffer.slice(..)),
        ..buffers
    };
    assert_eq!(
        op.bind(SMALL.shape(), with_c).unwrap_err().to_string(),
        "c_0: only an LSTM has a cell state"
    );
    assert_eq!(
        new(RecurrentConfig {
            cell: Cell::Gru,
            peephole: true,
            ..Default::default()
        }),
        "peephole: only an LSTM has a cell state"
    );
    assert_eq!(
        new(RecurrentConfig {
            dropout: 1.0,
            ..Default::default()
        }),
        "dropout: is a probability from 0 to below 1"
    );
    let projected = |cell, proj_size| {
        new(RecurrentConfig {
            cell,
            proj_size: Some(proj_size),
            ..Default::default()
        })
    };
    assert_eq!(
        projected(Cell::Gru, 4),
        "proj_size: only an LSTM has a projection"
    );
    assert_eq!(
        projected(Cell::Lstm, 129),
        "proj_size is 129, expected 1 to hidden_size = 128"
    );
    let short = RecurrentBuffers {
        scratch: other.slice(32768..33024),
        ..buffers
    };
    let message = op.bind(SMALL.shape(), short).unwrap_err().to_string();
    assert!(
        message.starts_with("scratch: the slice has 256 bytes, the shape needs "),
        "{message}"
    );
    let packed = gpu
        .run(|pass| op.pack_weights(pass, &[], buffer.slice(..)))
        .unwrap_err();
    assert_eq!(
        packed.to_string(),
        "number of weights is 0, expected num_layers * num_directions = 1"
    );
}

/// What is not a number shows in its sequence from its step on, as in PyTorch, and nowhere else.
#[test]
fn nan_stays_in_its_sequence_and_is_not_lost_there() {
    let Some(gpu) = gpu() else { return };
    for cell in CELLS {
        let activations = (cell == Cell::Gru).then_some(
            [Activations {
                gate: Activation::HardSigmoid,
                candidate: Activation::Relu,
                output: Activation::Tanh,
            }; 2],
        );
        let case = Case {
            cell,
            activations,
            magnitude: 0.9,
            direction: Direction::Bidirectional,
            ..SMALL
        };
        let clean = case.inputs();
        let (batch, time) = (case.batch as usize, 2);
        let mut inputs = case.inputs();
        inputs.input[(time * batch + 1) * case.input_size as usize + 3] = f32::NAN;
        let hidden = case.hidden_size as usize;
        for (guise, config, how) in variants(&guises(gpu), &case) {
            let [clean, got] = [&clean, &inputs].map(|inputs| run(&guise, &case, config, inputs));
            for (at, (got, clean)) in got[0].iter().zip(&clean[0]).enumerate() {
                let (unit, row) = (at / hidden % 2, at / hidden / 2 % batch);
                let step = at / hidden / 2 / batch;
                // the reverse direction comes from the end
                let reached = if unit == 0 {
                    step >= time
                } else {
                    step <= time
                };
                let as_expected = match row == 1 && reached {
                    true => got.is_nan(),
                    false => got.to_bits() == clean.to_bits(),
                };
                assert!(as_expected, "{cell:?}, {how}: element {at} is {got}");
            }
        }
        let output = inputs.reference::<f64>(&case).output;
        assert_eq!(output.iter().filter(|x| x.is_nan()).count(), {
            let seq_len = case.seq_len as usize;
            (seq_len - time + time + 1) * hidden
        });
    }
}
