//! Calls that must agree to the bit, that have nothing to do, and that are refused.

use super::{CELLS, check_cells};
use crate::common::recurrent::{Case, SMALL, pack, run, run_keeping, variants};
use crate::common::{Output, bits, gpu, guises};
use gatefold::{
    Capabilities, Cell, Direction, ElementType, Recurrent, RecurrentBuffers, RecurrentConfig,
    RecurrentShape, Tier,
};

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
