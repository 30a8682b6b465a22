//! Gradients by way of checkpoints: the f64 reference's, and those of the same pass without.

mod common;

use common::recurrent::{Case, Inputs, SMALL, run as run_forward, run_keeping};
use common::recurrent_backward::{
    ALL, Arriving, NONE, Named, Upstreams, all_guises, check, check_arriving, check_in, check_some,
    run, some, variants,
};
use common::{Random, bits, gpu};
use gatefold::{
    Activation, Activations, Capabilities, Cell, Direction, ElementType, Gpu, Recurrent,
    RecurrentConfig, RecurrentShape,
};

const CELLS: [Cell; 6] = [
    Cell::RnnTanh,
    Cell::RnnRelu,
    Cell::Lstm,
    Cell::LstmCoupled,
    Cell::Gru,
    Cell::GruResetBefore,
];

#[test]
fn every_cell_and_way_to_run_it() {
    for (cell, every) in [(Cell::Lstm, 4), (Cell::Gru, 2), (Cell::GruResetBefore, 3)] {
        check(Case {
            cell,
            checkpoint_every: Some(every),
            ..SMALL
        });
    }
    for (cell, every) in CELLS.into_iter().zip([1, 2, 3, 5, 9, 100]) {
        check_some(Case {
            cell,
            // the states of a relu network must not grow from step to step
            magnitude: 0.9,
            num_layers: 2,
            direction: Direction::Bidirectional,
            lengths: Some(&[9, 0, 4]),
            checkpoint_every: Some(every),
            ..SMALL
        });
    }
}

#[test]
fn only_some_gradients_arrive() {
    for arriving in [
        Arriving { h_n: true, ..NONE },
        Arriving { c_n: true, ..NONE },
    ] {
        let case = Case {
            num_layers: 2,
            lengths: Some(&[9, 0, 4]),
            checkpoint_every: Some(4),
            ..SMALL
        };
        check_arriving(case, arriving);
    }
}

#[test]
fn nothing_to_do() {
    for (seq_len, batch) in [(0, 3), (3, 0), (1, 1)] {
        check_some(Case {
            seq_len,
            batch,
            num_layers: 2,
            direction: Direction::Bidirectional,
            checkpoint_every: Some(2),
            ..SMALL
        });
    }
}

/// A case with options by chance.
fn by_chance(random: &mut Random) -> Case {
    let mut below = |n: u32| (random.uniform() * n as f32) as u32;
    let cell = CELLS[below(6) as usize];
    let is_lstm = cell.has_cell_state();
    let directions = [
        Direction::Forward,
        Direction::Reverse,
        Direction::Bidirectional,
    ];
    let lengths: [Option<&'static [u32]>; 3] = [None, Some(&[11, 0, 6]), Some(&[1, 10, 11])];
    let named = Activations {
        gate: Activation::HardSigmoid,
        candidate: Activation::Softsign,
        output: Activation::Tanh,
    };
    Case {
        cell,
        hidden_size: [5, 13][below(2) as usize],
        proj_size: (is_lstm && below(3) == 0).then_some(3),
        peephole: is_lstm && below(3) == 0,
        num_layers: 1 + below(3),
        dropout: [0.0, 0.4][below(2) as usize],
        direction: directions[below(3) as usize],
        clip: (below(3) == 0).then_some(0.8),
        truncate: (below(3) == 0).then_some(1 + below(5)),
        activations: (below(4) == 0).then_some([named; 2]),
        bias: below(4) > 0,
        states: below(3) > 0,
        lengths: lengths[below(3) as usize],
        seq_len: 11,
        magnitude: 0.9,
        checkpoint_every: Some(1 + below(13)),
        batch_first: below(2) == 0,
        elements: [(); 2].map(|()| ElementType::ALL[below(3) as usize]),
        ..SMALL
    }
}

/// Without checkpoints, in the same kernels.
fn without(case: &Case, config: RecurrentConfig) -> (Case, RecurrentConfig) {
    let plain = Case {
        checkpoint_every: None,
        ..*case
    };
    let config = RecurrentConfig {
        checkpoint_every: None,
        ..config
    };
    (plain, config)
}

/// The gradients with and without checkpoints.
fn both(gpu: &Gpu, case: &Case, config: RecurrentConfig, inputs: &Inputs) -> [Vec<Named>; 2] {
    let upstreams = Upstreams::new(case);
    let (plain, plain_config) = without(case, config);
    [
        run(gpu, case, config, inputs, &upstreams, ALL),
        run(gpu, &plain, plain_config, inputs, &upstreams, ALL),
    ]
}

#[test]
fn options_by_chance() {
    let Some(guises) = all_guises() else { return };
    let mut random = Random::new(0xc4ec);
    for _ in 0..16 {
        let case = by_chance(&mut random);
        let ways = some(variants(guises, &case), &case);
        check_in(&ways, case, ALL);
        let inputs = case.inputs();
        let (guise, config, how) = &ways[0];
        let [kept, plain] = both(guise, &case, *config, &inputs);
        for ((name, _, kept), (_, _, plain)) in kept.iter().zip(&plain) {
            // those of weights are sums over the tokens of a segment first
            let sums = ["weight", "bias", "peephole"];
            if !sums.iter().any(|sum| name.contains(sum)) {
                assert_eq!(bits(kept), bits(plain), "{name}: {how}\n{case:?}");
            }
        }
    }
}

/// The device with bindings so small that a call takes several chunks.
fn few(gpu: &Gpu) -> Gpu {
    let few = Capabilities {
        storage_binding_size: 24 << 10,
        ..*gpu.context().capabilities()
    };
    gpu.with_capabilities(few, Default::default())
}

#[test]
fn equal_chunks_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let guises = [gpu.clone(), few(gpu)];
    for (cell, proj_size) in [
        (Cell::Lstm, None),
        (Cell::Lstm, Some(4)),
        (Cell::GruResetBefore, None),
    ] {
        let case = Case {
            cell,
            proj_size,
            batch_first: proj_size.is_some(),
            peephole: cell == Cell::Lstm,
            seq_len: 40,
            direction: Direction::Bidirectional,
            num_layers: 2,
            lengths: Some(&[40, 0, 17]),
            // as many as a chunk has
            checkpoint_every: Some(1000),
            ..SMALL
        };
        let inputs = case.inputs();
        for (guise, config, how) in variants(&guises, &case) {
            let [kept, plain] = both(&guise, &case, config, &inputs);
            for ((name, _, kept), (_, _, plain)) in kept.iter().zip(&plain) {
                assert_eq!(bits(kept), bits(plain), "{name}: {how}");
            }
        }
        check_in(&some(variants(&guises[1..], &case), &case), case, ALL);
    }
}

#[test]
fn chunks_and_checkpoints_need_not_agree() {
    let Some(gpu) = gpu() else { return };
    let guises = [few(gpu)];
    for every in [3, 7] {
        let case = Case {
            seq_len: 40,
            direction: Direction::Bidirectional,
            num_layers: 2,
            lengths: Some(&[40, 0, 17]),
            checkpoint_every: Some(every),
            batch_first: every == 7,
            ..SMALL
        };
        check_in(&some(variants(&guises, &case), &case), case, ALL);
    }
}

#[test]
fn the_forward_pass_gives_the_same_bits() {
    let Some(guises) = all_guises() else { return };
    for cell in [Cell::Lstm, Cell::Gru, Cell::GruResetBefore] {
        let case = Case {
            cell,
            num_layers: 2,
            direction: Direction::Bidirectional,
            lengths: Some(&[9, 0, 4]),
            checkpoint_every: Some(4),
            batch_first: cell == Cell::Gru,
            ..SMALL
        };
        let inputs = case.inputs();
        for (guise, config, how) in variants(guises, &case) {
            let (plain, plain_config) = without(&case, config);
            let plain = run_forward(&guise, &plain, plain_config, &inputs);
            let kept = run_keeping(&guise, &case, config, &inputs);
            for (plain, kept) in plain.iter().zip(kept) {
                assert_eq!(bits(plain), bits(&kept), "{how}");
            }
        }
    }
}

#[test]
fn memory_grows_with_the_segments_and_not_with_time() {
    let Some(gpu) = gpu() else { return };
    for cell in [Cell::Lstm, Cell::Gru] {
        // bytes of the reserve and of the backward pass's scratch
        let sizes = |checkpoint_every, seq_len| {
            let config = RecurrentConfig {
                cell,
                hidden_size: 32,
                input_size: 16,
                gradients: true,
                checkpoint_every,
                ..Default::default()
            };
            let shape = RecurrentShape {
                seq_len,
                batch: 4,
                seed: 0,
            };
            let op = Recurrent::new(gpu.context(), config).unwrap();
            [
                op.reserve_size(shape).unwrap(),
                op.backward_scratch_size(shape).unwrap(),
            ]
        };
        let [reserve, scratch] = sizes(None, 1024);
        let [kept, again] = sizes(Some(32), 1024);
        assert!(kept * 50 < reserve, "{cell:?}: {kept} of {reserve} bytes");
        assert!(again * 8 < scratch, "{cell:?}: {again} of {scratch} bytes");
        // f32 states of 32 units and 4 rows in front of each of 32 segments
        let state = if cell == Cell::Lstm { 2 } else { 1 } * 32 * 4 * 4;
        assert_eq!(kept, 32 * state);
        assert_eq!(sizes(Some(32), 2048), [2 * kept, again]);
        // as many segments, each four times as long
        let [longer, more] = sizes(Some(128), 4096);
        assert_eq!(longer, kept);
        assert!(more < 5 * again, "{cell:?}: {more} after {again} bytes");
        let [initial, _] = sizes(Some(5000), 1024);
        assert_eq!(initial, state);
    }
}

#[test]
fn no_step_at_all_is_refused() {
    let Some(gpu) = gpu() else { return };
    let config = RecurrentConfig {
        checkpoint_every: Some(0),
        gradients: true,
        ..SMALL.config(None, None)
    };
    let error = Recurrent::new(gpu.context(), config).unwrap_err();
    assert_eq!(
        error.to_string(),
        "checkpoint_every is 0, expected at least 1 step"
    );
}
