//! The pure plans, without a GPU, for any configuration, shape and device.

mod attention;
mod recurrent;
mod scan;

use gatefold::kernel::{Dispatch, MAX_STEPS, Operand, WINDOW_ALIGNMENT};
use gatefold::{Capabilities, Error, Plan};
use proptest::prelude::*;

fn devices() -> impl Strategy<Value = Capabilities> {
    let subgroup_size = prop_oneof![
        Just(None),
        (0..8u32).prop_map(|power| Some((1 << power, 1 << power))),
        Just(Some((4, 64))),
        Just(Some((32, 64))),
    ];
    let binding_size = prop_oneof![
        Just(128 << 20),
        Just(u64::MAX),
        0..2000u64,
        2000..200_000u64
    ];
    (any::<bool>(), subgroup_size, 14..17u32, binding_size).prop_map(
        |(cpu, subgroup_size, memory, storage_binding_size)| Capabilities {
            cpu,
            subgroup_size,
            workgroup_memory: 1 << memory,
            storage_binding_size,
            ..Capabilities::floor()
        },
    )
}

/// Sizes small and huge alike.
fn sizes() -> impl Strategy<Value = u32> {
    prop_oneof![0..40u32, 40..5000u32, any::<u32>()]
}

/// The field of `Params` with this name, as the kernel sees it.
fn param(dispatch: &Dispatch, name: &str) -> u32 {
    let fields = dispatch.kernel.params;
    let at = fields.iter().position(|(field, _)| *field == name).unwrap();
    u32::from_le_bytes(dispatch.params[4 * at..][..4].try_into().unwrap())
}

/// The elements of the caller's slice that a binding spans, and where the kernel starts in it.
fn window(dispatch: &Dispatch, tensor: &str) -> Option<(u64, u64, u64)> {
    let window = dispatch.operands.iter().find_map(|operand| match operand {
        Operand::Slice { name, window } if *name == tensor => Some(window.clone()),
        _ => None,
    })?;
    let first = param(dispatch, &format!("{tensor}_first"));
    Some((
        window.start / 4 + u64::from(first),
        window.start / 4,
        window.end / 4,
    ))
}

/// What must hold for the launches of any operation.
fn check_launches(plan: &Plan, device: &Capabilities) -> Result<(), TestCaseError> {
    for dispatch in &plan.dispatches {
        prop_assert!(
            dispatch
                .grid
                .iter()
                .all(|count| (1..=65_535).contains(count))
        );
        prop_assert!((1..=MAX_STEPS).contains(&dispatch.steps));
        prop_assert_eq!(dispatch.operands.len(), dispatch.kernel.storage.len());
        prop_assert_eq!(dispatch.params.len(), 4 * dispatch.kernel.params.len());
        for operand in &dispatch.operands {
            let Operand::Slice { name, window } = operand else {
                continue;
            };
            prop_assert_eq!(window.start % WINDOW_ALIGNMENT, 0, "{}", name);
            prop_assert!(
                window.start < window.end && window.end.is_multiple_of(4),
                "{}: {:?}",
                name,
                window
            );
            prop_assert!(
                window.end - window.start <= device.storage_binding_size,
                "{}: {:?}",
                name,
                window
            );
            prop_assert!(
                window.end - window.start <= 1 << 32,
                "{}: {:?}",
                name,
                window
            );
        }
    }
    Ok(())
}

fn check_planned(plan: Result<Plan, Error>, device: &Capabilities) -> Result<(), TestCaseError> {
    match plan {
        Ok(plan) => check_launches(&plan, device),
        Err(Error::Shape { .. } | Error::Limit { .. }) => Ok(()),
        Err(error) => Err(TestCaseError::fail(error.to_string())),
    }
}
