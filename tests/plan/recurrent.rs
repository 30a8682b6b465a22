//! RNN, LSTM and GRU of any size.

use super::{devices, sizes};
use gatefold::kernel::{MAX_STEPS, Operand, WINDOW_ALIGNMENT};
use gatefold::{
    Capabilities, Cell, Direction, ElementType, Error, Given, RecurrentBackwardGiven,
    RecurrentConfig, RecurrentShape, Tier, Variant,
};
use proptest::prelude::*;

fn recurrences() -> impl Strategy<Value = (RecurrentConfig, RecurrentShape)> {
    let cell = prop::sample::select(vec![
        Cell::RnnTanh,
        Cell::Lstm,
        Cell::Gru,
        Cell::GruResetBefore,
    ]);
    let direction = prop::sample::select(vec![Direction::Forward, Direction::Bidirectional]);
    let tier = prop::sample::select(vec![
        None,
        Some(Tier::Stepped),
        Some(Tier::Resident),
        Some(Tier::Persistent),
    ]);
    let all = (
        cell,
        direction,
        tier,
        sizes(),
        sizes(),
        1..1025u32,
        sizes(),
        sizes(),
    );
    all.prop_map(
        |(cell, direction, tier, input_size, hidden_size, num_layers, seq_len, batch)| {
            let config = RecurrentConfig {
                cell,
                input_size,
                hidden_size,
                num_layers,
                direction,
                tier,
                ..Default::default()
            };
            let seed = 0;
            (
                config,
                RecurrentShape {
                    seq_len,
                    batch,
                    seed,
                },
            )
        },
    )
}

proptest! {
    #[test]
    fn recurrences_of_any_size_are_planned_or_refused(
        device in devices(),
        (config, shape) in recurrences(),
        every in 1..200u32,
    ) {
        let config = RecurrentConfig { gradients: true, ..config };
        let checkpoints = RecurrentConfig { checkpoint_every: Some(every), ..config };
        let given = |reserve| Given { reserve, ..Default::default() };
        let backward = RecurrentBackwardGiven {
            lengths: true,
            grad_output: true,
            grad_h_n: true,
            grad_input: true,
            grad_h_0: true,
            parameters: true,
            bias: true,
            grad_norms: true,
            ..Default::default()
        };
        let more = RecurrentConfig {
            batch_first: true,
            element: ElementType::Bf16,
            weights: ElementType::F16,
            dropout: 0.5,
            proj_size: (config.cell == Cell::Lstm).then_some(config.hidden_size / 2),
            ..config
        };
        let plans = [
            more.plan(&device, shape, given(false)),
            more.plan(&device, shape, given(true)),
            more.plan_backward(&device, shape, backward),
            config.plan(&device, shape, given(false)),
            config.plan(&device, shape, given(true)),
            config.plan_backward(&device, shape, backward),
            checkpoints.plan(&device, shape, given(true)),
            checkpoints.plan_backward(&device, shape, backward),
        ];
        for plan in plans.into_iter().flatten() {
            prop_assert!(plan.dispatches.len() <= 1 << 16);
            for dispatch in &plan.dispatches {
                prop_assert!((1..=MAX_STEPS).contains(&dispatch.steps));
                for operand in &dispatch.operands {
                    if let Operand::Slice { window, .. } = operand {
                        prop_assert!(window.start < window.end);
                        prop_assert!(window.start.is_multiple_of(WINDOW_ALIGNMENT));
                    }
                }
            }
        }
    }
}

#[test]
fn the_gradient_of_a_half_is_twice_as_large() {
    let device = Capabilities {
        storage_binding_size: 64 << 10,
        ..Capabilities::floor()
    };
    let config = RecurrentConfig {
        element: ElementType::F16,
        batch_first: true,
        input_size: 100,
        hidden_size: 8,
        gradients: true,
        ..Default::default()
    };
    let shape = RecurrentShape {
        seq_len: 16,
        batch: 16,
        seed: 0,
    };
    let reserve = Given {
        reserve: true,
        ..Default::default()
    };
    config.plan(&device, shape, reserve).unwrap();
    let backward = |grad_input| {
        let given = RecurrentBackwardGiven {
            grad_output: true,
            grad_input,
            parameters: true,
            ..Default::default()
        };
        config.plan_backward(&device, shape, given)
    };
    backward(false).unwrap();
    let error = backward(true).unwrap_err();
    assert!(matches!(
        error,
        Error::Limit {
            needed: 102_400,
            ..
        }
    ));
}

#[test]
fn matrix_units_are_asked_for_and_run_step_by_step() {
    let device = Capabilities {
        cooperative: Some(16),
        subgroup_size: Some((32, 32)),
        f16: true,
        workgroup_memory: 48 << 10,
        workgroup_invocations: 1024,
        ..Capabilities::floor()
    };
    let shape = RecurrentShape {
        seq_len: 7,
        batch: 16,
        seed: 0,
    };
    let plan = |variant, tier| {
        let config = RecurrentConfig {
            hidden_size: 768,
            variant,
            tier,
            ..Default::default()
        };
        config.plan(&device, shape, Given::default())
    };
    assert_eq!(plan(None, None).unwrap().variant, Variant::Portable);
    let asked = plan(Some(Variant::Cooperative), None).unwrap();
    assert_eq!(
        asked.describe,
        "stepped, 8 units x 16 rows per workgroup, matrices of 16"
    );
    let resident = plan(Some(Variant::Cooperative), Some(Tier::Resident));
    assert!(matches!(resident, Err(Error::Feature { .. })));
}
