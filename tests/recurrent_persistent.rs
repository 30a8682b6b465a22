//! The tier whose workgroups wait for each other: right whether they give up at once, somewhere or never.

mod common;

use common::recurrent::{Case, SMALL, judge, run};
use common::{bits, gpu, guises};
use gatefold::{
    Activation, Activations, Capabilities, Cell, Checks, Context, Direction, Given,
    RecurrentConfig, RecurrentShape, Tier,
};

/// Looks for a word before a workgroup gives up: once, some times, and often enough for all that a thread of
/// the device does in between.
const BOUNDS: [u32; 3] = [0, 40, 4000];

fn check(case: Case) {
    let Some(gpu) = gpu() else { return };
    let inputs = case.inputs();
    let mut seen = Vec::new();
    // with room for few workgroups they take the rows in turn
    let guises = guises(gpu).into_iter().flat_map(|guise| {
        let roomy = Capabilities {
            concurrent_workgroups: 1 << 16,
            ..*guise.context().capabilities()
        };
        let roomy = guise.with_capabilities(roomy, Checks::Trusted);
        [guise, roomy]
    });
    for guise in guises {
        let config = case.config(Some(Tier::Persistent), None);
        let plan = config.plan(guise.context().capabilities(), case.shape(), case.given());
        let plan = plan.unwrap();
        if seen.contains(&plan.describe) {
            continue;
        }
        let results = BOUNDS.map(|bound| {
            let config = RecurrentConfig {
                spin_bound: Some(bound),
                ..config
            };
            run(&guise, &case, config, &inputs)
        });
        judge(&guise, &case, &inputs, &results[0], &plan.describe);
        for (bound, other) in BOUNDS.iter().zip(&results) {
            for (one, other) in results[0].iter().zip(other) {
                let how = format!("{}, {bound} looks\n{case:?}", plan.describe);
                assert_eq!(bits(one), bits(other), "{how}");
            }
        }
        seen.push(plan.describe);
    }
}

#[test]
fn every_cell_survives_that_workgroups_give_up() {
    for cell in [
        Cell::RnnTanh,
        Cell::Lstm,
        Cell::LstmCoupled,
        Cell::Gru,
        Cell::GruResetBefore,
    ] {
        check(Case {
            cell,
            hidden_size: 70,
            magnitude: 0.9,
            ..SMALL
        });
    }
}

#[test]
fn a_single_workgroup_waits_for_nobody() {
    check(Case {
        hidden_size: 5,
        batch: 1,
        ..SMALL
    });
}

#[test]
fn layers_directions_lengths_and_projections() {
    check(Case {
        hidden_size: 70,
        proj_size: Some(40),
        direction: Direction::Bidirectional,
        num_layers: 2,
        lengths: Some(&[9, 0, 4, 1, 8]),
        batch: 5,
        batch_first: true,
        peephole: true,
        ..SMALL
    });
    check(Case {
        cell: Cell::GruResetBefore,
        hidden_size: 70,
        direction: Direction::Reverse,
        lengths: Some(&[0, 9, 3]),
        clip: Some(0.5),
        activations: Some(
            [Activations {
                candidate: Activation::Softsign,
                ..Cell::Gru.activations()
            }; 2],
        ),
        magnitude: 0.9,
        ..SMALL
    });
}

#[test]
fn wide_states_stream_their_weights() {
    check(Case {
        cell: Cell::Gru,
        hidden_size: 600,
        seq_len: 4,
        batch: 1,
        magnitude: 0.9,
        ..SMALL
    });
}

#[test]
fn nothing_to_do() {
    check(Case {
        seq_len: 0,
        hidden_size: 70,
        num_layers: 2,
        ..SMALL
    });
    check(Case { batch: 0, ..SMALL });
}

/// All bits set is a NaN whose word would be taken for one that is not there.
#[test]
fn a_nan_stays_in_its_sequence_and_hangs_nothing() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        // what is not a number in h stays so: h' = (1 - z) n + z h
        cell: Cell::Gru,
        hidden_size: 70,
        ..SMALL
    };
    let config = RecurrentConfig {
        spin_bound: Some(40),
        ..case.config(Some(Tier::Persistent), None)
    };
    let good = case.inputs();
    let mut bad = case.inputs();
    let row = case.hidden_size as usize;
    bad.h_0[row..2 * row].fill(f32::from_bits(u32::MAX));
    let (good, bad) = (
        run(gpu, &case, config, &good),
        run(gpu, &case, config, &bad),
    );
    for (at, (good, bad)) in good[0].iter().zip(&bad[0]).enumerate() {
        match at / row % case.batch as usize {
            1 => assert!(bad.is_nan(), "element {at}"),
            _ => assert_eq!(good.to_bits(), bad.to_bits(), "element {at}"),
        }
    }
}

#[test]
fn it_is_planned_only_where_workgroups_were_seen_to_run_together() {
    let shape = RecurrentShape {
        seq_len: 100,
        batch: 1,
        seed: 0,
    };
    let config = RecurrentConfig {
        hidden_size: 512,
        ..Default::default()
    };
    let planned = |concurrent_workgroups, cpu, reserve| {
        let device = Capabilities {
            cpu,
            concurrent_workgroups,
            ..Capabilities::floor()
        };
        let given = Given {
            reserve,
            ..Default::default()
        };
        let gradients = reserve;
        let config = RecurrentConfig {
            gradients,
            ..config
        };
        config.plan(&device, shape, given).unwrap().describe
    };
    assert!(planned(0, false, false).starts_with("stepped"));
    assert!(planned(31, false, false).starts_with("stepped"));
    assert!(planned(32, false, false).starts_with("persistent"));
    assert!(planned(32, false, true).starts_with("stepped"));
    assert!(!planned(0, true, false).starts_with("persistent"));
}

#[test]
fn a_cpu_is_not_probed() {
    let Some(gpu) = gpu() else { return };
    let probed: Context = gpu.context().probe(gpu.queue()).unwrap();
    let capabilities = probed.capabilities();
    if capabilities.cpu {
        assert_eq!(capabilities.concurrent_workgroups, 0);
    } else {
        eprintln!(
            "{} workgroups at a time",
            capabilities.concurrent_workgroups
        );
    }
    // and a CPU that claims to be a GPU gets through it
    let masked = gpu.with_capabilities(
        Capabilities {
            cpu: false,
            ..*gpu.context().capabilities()
        },
        Default::default(),
    );
    masked.context().probe(gpu.queue()).unwrap();
}
