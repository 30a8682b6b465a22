//! Attention: every head once, from its own rows; classes, tiles, limits.

use super::{check_launches, devices, param, window};
use gatefold::kernel::Dispatch;
use gatefold::{
    AttentionBackwardGiven, AttentionConfig, AttentionGiven, AttentionShape, Capabilities, Causal,
    ElementType, Error, Layout, Plan, Variant,
};
use proptest::prelude::*;
use std::collections::HashMap;

const GIVEN: AttentionGiven = AttentionGiven {
    log_sum_exp: true,
    kv_lengths: false,
};

fn configs() -> impl Strategy<Value = AttentionConfig> {
    let causal = prop_oneof![
        Just(Causal::No),
        Just(Causal::TopLeft),
        Just(Causal::BottomRight),
        (-200..200i32).prop_map(Causal::Offset),
        any::<i32>().prop_map(Causal::Offset),
    ];
    let variant =
        prop::sample::select(vec![None, Some(Variant::Portable), Some(Variant::Subgroup)]);
    let dims = (0..520u32, prop::option::of(0..520u32));
    (dims, prop::option::of(any::<f32>()), causal, variant).prop_map(
        |((head_dim, value_dim), scale, causal, variant)| AttentionConfig {
            head_dim,
            value_dim,
            scale,
            causal,
            variant,
            ..Default::default()
        },
    )
}

fn layouts(most: u32) -> impl Strategy<Value = Layout> {
    let stride = move || 0..=most;
    prop_oneof![
        3 => Just(Layout::Bhsd),
        3 => Just(Layout::Bshd),
        1 => (stride(), stride(), stride())
            .prop_map(|(batch, head, token)| Layout::Strides { batch, head, token }),
    ]
}

/// 0 to `most`, small numbers as likely as large ones.
fn up_to(most: u32) -> impl Strategy<Value = u32> {
    (0..=most.ilog2()).prop_flat_map(move |bits| 0..=most.min((2u64.pow(bits + 1) - 1) as u32))
}

fn shapes(batch: u32, heads: u32, len: u32, stride: u32) -> impl Strategy<Value = AttentionShape> {
    let sizes = (
        up_to(batch),
        1..=heads,
        up_to(heads),
        up_to(len),
        up_to(len),
    );
    let layouts = [(); 4].map(|()| layouts(stride));
    (sizes, layouts).prop_map(|((batch, num_kv_heads, group, q_len, kv_len), layouts)| {
        let num_heads = num_kv_heads.saturating_mul(group);
        let [query_layout, key_layout, value_layout, output_layout] = layouts;
        AttentionShape {
            query_layout,
            key_layout,
            value_layout,
            output_layout,
            ..AttentionShape::new(batch, num_heads, num_kv_heads, q_len, kv_len)
        }
    })
}

/// A tensor of a dispatch as its kernel walks it.
struct Walk {
    /// Element of index 0, in the caller's slice.
    first: u64,
    /// The binding, likewise.
    binding: (u64, u64),
    strides: [u64; 3],
}

impl Walk {
    fn new(dispatch: &Dispatch, name: &str) -> Option<Self> {
        let (first, start, end) = window(dispatch, name)?;
        let strides = ["batch", "head", "token"]
            .map(|axis| param(dispatch, &format!("{name}_{axis}")).into());
        Some(Self {
            first,
            binding: (start, end),
            strides,
        })
    }

    /// Where the row begins in the caller's slice; fails if it leaves the binding or 32 bits.
    fn row(&self, index: [u64; 3], dim: u64) -> Result<u64, TestCaseError> {
        let row = self.first
            + index
                .iter()
                .zip(self.strides)
                .map(|(i, stride)| i * stride)
                .sum::<u64>();
        let (start, end) = self.binding;
        prop_assert!(
            row >= start && row + dim <= end,
            "row {row} + {dim} leaves {start}..{end}"
        );
        prop_assert!(
            row + dim - start <= u64::from(u32::MAX),
            "an index needs more than 32 bits"
        );
        Ok(row)
    }
}

/// The strides of a layout, worked out here once more.
fn strides(layout: Layout, heads: u64, len: u64, dim: u64) -> [u64; 3] {
    match layout {
        Layout::Bhsd => [heads * len * dim, len * dim, dim],
        Layout::Bshd => [heads * len * dim, dim, heads * dim],
        Layout::Strides { batch, head, token } => [batch, head, token].map(u64::from),
    }
}

/// Follows the kernels' index arithmetic: every head of every batch row is computed once, from its own rows.
fn check_heads(
    config: &AttentionConfig,
    shape: &AttentionShape,
    plan: &Plan,
) -> Result<(), TestCaseError> {
    let (heads, kv_heads) = (u64::from(shape.num_heads), u64::from(shape.num_kv_heads));
    let (q_len, kv_len) = (u64::from(shape.q_len), u64::from(shape.kv_len));
    let head_dim = u64::from(config.head_dim);
    let value_dim = u64::from(config.value_dim.unwrap_or(config.head_dim));
    let wanted = |layout, heads, len, dim, b: u64, h: u64| -> u64 {
        let [batch, head, _] = strides(layout, heads, len, dim);
        b * batch + h * head
    };
    let mut computed: HashMap<(u64, u64), u32> = HashMap::new();
    for dispatch in &plan.dispatches {
        let tensors = ["query", "key", "value", "output"].map(|name| Walk::new(dispatch, name));
        let [Some(query), key, value, Some(output)] = tensors else {
            return Err(TestCaseError::fail("query and output are bound"));
        };
        let (lse, lse_start, lse_end) = window(dispatch, "log_sum_exp").unwrap();
        let chunk = u64::from(param(dispatch, "num_heads"));
        let tiles = u64::from(param(dispatch, "num_tiles"));
        let groups = u64::from(param(dispatch, "num_groups"));
        let group_size = u64::from(param(dispatch, "group_size"));
        prop_assert!(u64::from(dispatch.grid[0]) * u64::from(dispatch.grid[1]) >= groups);
        prop_assert_eq!(groups % (tiles * chunk), 0);
        for local in 0..groups / tiles {
            let (b, h) = (local / chunk, local % chunk);
            let row = lse + local * q_len;
            prop_assert!(row >= lse_start && row + q_len <= lse_end && row % q_len == 0);
            // log_sum_exp is contiguous, so its row says which head this is
            let (batch, head) = (row / q_len / heads, row / q_len % heads);
            *computed.entry((batch, head)).or_default() += 1;
            let first = query.row([b, h, 0], head_dim)?;
            prop_assert_eq!(
                first,
                wanted(shape.query_layout, heads, q_len, head_dim, batch, head)
            );
            query.row([b, h, q_len - 1], head_dim)?;
            let first = output.row([b, h, 0], value_dim)?;
            prop_assert_eq!(
                first,
                wanted(shape.output_layout, heads, q_len, value_dim, batch, head)
            );
            output.row([b, h, q_len - 1], value_dim)?;
            let kv_head = head / (heads / kv_heads);
            for (walk, layout, dim) in [
                (&key, shape.key_layout, head_dim),
                (&value, shape.value_layout, value_dim),
            ] {
                let Some(walk) = walk else {
                    prop_assert_eq!(kv_len, 0);
                    continue;
                };
                let first = walk.row([b, h / group_size, 0], dim)?;
                prop_assert_eq!(first, wanted(layout, kv_heads, kv_len, dim, batch, kv_head));
                walk.row([b, h / group_size, kv_len - 1], dim)?;
            }
        }
    }
    let rows = if q_len == 0 {
        0
    } else {
        u64::from(shape.batch) * heads
    };
    prop_assert_eq!(computed.len() as u64, rows);
    prop_assert!(computed.values().all(|&times| times == 1));
    Ok(())
}

/// Query-key pairs, counted one by one.
fn pairs(causal: Causal, q_len: u32, kv_len: u32) -> u64 {
    let offset = causal.offset(q_len, kv_len);
    let allowed =
        |i: u32, j: u32| offset.is_none_or(|offset| i64::from(j) <= i64::from(i) + offset);
    (0..q_len)
        .map(|i| (0..kv_len).filter(|&j| allowed(i, j)).count() as u64)
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_covers_every_head_once(
        device in devices(),
        config in configs(),
        shape in shapes(4, 5, 150, 4000),
    ) {
        match config.plan(&device, shape, GIVEN) {
            Ok(plan) => {
                check_launches(&plan, &device)?;
                // heads that are folded and keys that are split have places of their own, which results show
                if !plan.describe.contains("folded") && !plan.describe.contains("splits") {
                    check_heads(&config, &shape, &plan)?;
                }
                let value_dim = config.value_dim.unwrap_or(config.head_dim);
                let dims = u64::from(config.head_dim + value_dim);
                let heads = u64::from(shape.batch) * u64::from(shape.num_heads);
                let flops = 2 * heads * dims * pairs(config.causal, shape.q_len, shape.kv_len);
                prop_assert_eq!(plan.flops, flops as f64);
            }
            Err(Error::Shape { .. } | Error::Feature { .. } | Error::Limit { .. }) => {}
            Err(error) => return Err(TestCaseError::fail(format!("{error:?}"))),
        }
    }

    #[test]
    fn attention_of_any_size_is_planned_or_refused(
        device in devices(),
        config in configs(),
        shape in shapes(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
    ) {
        if let Ok(plan) = config.plan(&device, shape, GIVEN) {
            check_launches(&plan, &device)?;
        }
    }
}

/// Sizes at which 32 or 64 bits end.
#[test]
fn attention_refuses_what_no_device_can_hold() {
    let device = Capabilities {
        storage_binding_size: u64::MAX,
        ..Capabilities::floor()
    };
    for causal in [Causal::No, Causal::TopLeft] {
        let config = AttentionConfig {
            head_dim: 256,
            causal,
            ..Default::default()
        };
        for layout in [Layout::Bhsd, Layout::Bshd] {
            let whole =
                AttentionShape::new(u32::MAX, u32::MAX, u32::MAX, (1 << 28) - 1, (1 << 28) - 1);
            let error = config
                .plan(&device, whole.with_layout(layout), GIVEN)
                .unwrap_err();
            assert!(matches!(error, Error::Limit { .. }), "{error}");
        }
        let long = AttentionShape::new(1, 1, 1, 1 << 28, 1);
        let error = config.plan(&device, long, GIVEN).unwrap_err();
        assert_eq!(
            error.to_string(),
            "q_len is 268435456, expected less than 2^28"
        );
    }
}

#[test]
fn gradients_ask_for_the_classes_of_a_mask_and_of_nothing_else() {
    let floor = Capabilities::floor();
    let gpu = |subgroup_size| Capabilities {
        subgroup_size: Some((subgroup_size, subgroup_size)),
        cooperative: Some(if subgroup_size < 16 { 8 } else { 16 }),
        workgroup_memory: 48 << 10,
        workgroup_invocations: 1024,
        f16: true,
        ..floor
    };
    let cpu = Capabilities {
        cpu: true,
        ..gpu(8)
    };
    let few = AttentionShape::new(2, 6, 2, 65, 129);
    let many = AttentionShape::new(8, 16, 16, 300, 500);
    for device in [floor, gpu(32), gpu(64), cpu] {
        for (head_dim, shape) in [(16, few), (64, many), (128, many), (512, few)] {
            let plain = AttentionConfig {
                head_dim,
                element: ElementType::F16,
                bias: Some(ElementType::F32),
                ..Default::default()
            };
            for variant in plain.variants(&device) {
                let names = |mask, grad_bias| {
                    let config = AttentionConfig {
                        mask,
                        variant: Some(variant),
                        ..plain
                    };
                    let given = AttentionBackwardGiven {
                        grad_bias,
                        ..Default::default()
                    };
                    let plan = config.plan_backward(&device, shape, given).unwrap();
                    let names = plan.dispatches.iter().map(|dispatch| dispatch.kernel.name);
                    (names.collect::<Vec<_>>(), plan.scratch_size)
                };
                let (with, scratch_size) = names(true, true);
                let (without, _) = names(false, true);
                assert_eq!(with[..2], ["attention_mask", "attention_classes"]);
                assert_eq!(with[2..], without, "{variant}");
                assert_eq!(without[0], "attention_backward_statistics");
                // scratch is asked for before it is known whether there is a gradient of the bias
                assert_eq!(names(true, false).1, scratch_size, "{variant}");
            }
        }
    }
}

#[test]
fn few_queries_are_held_by_few_subgroups() {
    let device = Capabilities {
        subgroup_size: Some((32, 32)),
        cooperative: Some(16),
        workgroup_memory: 48 << 10,
        f16: true,
        ..Capabilities::floor()
    };
    let config = AttentionConfig {
        head_dim: 128,
        element: ElementType::F16,
        ..Default::default()
    };
    // heads that share keys are rows of one tile together where they fit
    for (q_len, num_heads, rows) in [
        (17, 2, 32),
        (33, 2, 64),
        (65, 2, 128),
        (300, 2, 128),
        (10, 8, 64),
        (30, 8, 128),
        (40, 8, 64),
    ] {
        let shape = AttentionShape::new(1, num_heads, 2, q_len, 500);
        let plan = config.plan(&device, shape, GIVEN).unwrap();
        let described = format!("cooperative, {rows} queries x 32 keys");
        assert!(plan.describe.starts_with(&described), "{}", plan.describe);
    }
}
