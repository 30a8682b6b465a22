//! What the operations run on the kinds of devices that there are, worked out by their plans alone.

use std::collections::HashMap;

use gatefold::kernel::{Constants, Dispatch, Kernel};
use gatefold::{AdditiveAttentionConfig, AdditiveAttentionMask, AdditiveAttentionShape};
use gatefold::{AttentionAppendConfig, AttentionAppendShape, Layout, Paged};
use gatefold::{AttentionBackwardGiven, AttentionConfig, AttentionGiven, AttentionShape, Causal};
use gatefold::{
    Candidate, MinCell, MinRecurrentBackwardGiven, MinRecurrentConfig, MinRecurrentGiven,
    MinRecurrentShape,
};
use gatefold::{Capabilities, Plan, Variant};
use gatefold::{Cell, Direction, Given, RecurrentBackwardGiven, RecurrentConfig, RecurrentShape};
use gatefold::{Chosen, ElementType, GemmConfig, GemmShape, Tier};
use gatefold::{ScanBackwardGiven, ScanConfig, ScanGiven, ScanShape};

/// What each operation runs on a device: one line per operation.
const OPERATIONS: &[fn(&Capabilities) -> Vec<Launch>] = &[
    additive_attention,
    attention,
    attention_append,
    gemm,
    recurrent,
    recurrent_probe,
    cooperative_probe,
    gradient_clip,
    scan,
    min_recurrent,
    peak,
];

type Launch = (Variant, Dispatch);

fn launches(plan: Plan) -> impl Iterator<Item = Launch> {
    plan.dispatches
        .into_iter()
        .map(move |dispatch| (plan.variant, dispatch))
}

fn additive_attention(device: &Capabilities) -> Vec<Launch> {
    let plain = AdditiveAttentionShape::new(2, 65, 129);
    let masked = plain.with_mask(AdditiveAttentionMask::FULL);
    let mut all = Vec::new();
    let f32 = ElementType::F32;
    for (value_dim, element, shape) in [
        (1, f32, plain),
        (20, f32, plain),
        (20, ElementType::F16, masked.with_kv_lengths()),
        (300, f32, masked),
        (300, ElementType::Bf16, plain.with_kv_lengths()),
    ] {
        for variant in AdditiveAttentionConfig::default().variants(device) {
            let config = AdditiveAttentionConfig {
                value_dim: Some(value_dim),
                element,
                variant: Some(variant),
                ..Default::default()
            };
            all.extend(launches(config.plan(device, shape, true, true).unwrap()));
            all.extend(launches(config.plan_backward(device, shape).unwrap()));
        }
    }
    all
}

/// All but these need nothing of a subgroup, whatever the variant of the plan.
fn backward_needs(dispatch: Dispatch) -> Launch {
    let variant = match dispatch.kernel.name {
        "attention_backward_broadcast" => Variant::Subgroup,
        "attention_backward_cooperative" => Variant::Cooperative,
        _ => Variant::Portable,
    };
    (variant, dispatch)
}

fn attention(device: &Capabilities) -> Vec<Launch> {
    const DIMS: [(u32, u32); 12] = [
        (1, 1),
        (7, 13),
        (16, 16),
        (33, 5),
        (64, 64),
        (80, 80),
        (97, 40),
        (64, 128),
        (128, 128),
        (192, 128),
        (256, 256),
        (512, 512),
    ];
    let shape = AttentionShape::new(2, 6, 2, 65, 129);
    let decode = AttentionShape::new(1, 6, 2, 1, 2000);
    let many = AttentionShape::new(8, 16, 16, 300, 129);
    let mut all = Vec::new();
    for (head_dim, value_dim) in DIMS {
        let plain = AttentionConfig {
            head_dim,
            value_dim: Some(value_dim),
            ..Default::default()
        };
        let halves = AttentionConfig {
            element: ElementType::F16,
            variant: Some(Variant::Cooperative),
            ..plain
        };
        if halves
            .variants(device)
            .any(|variant| variant == Variant::Cooperative)
        {
            let given = AttentionGiven::default();
            let few = AttentionShape::new(1, 6, 6, 20, 129);
            for shape in [shape, few] {
                all.extend(launches(halves.plan(device, shape, given).unwrap()));
            }
            let given = AttentionBackwardGiven::default();
            let masked = AttentionConfig {
                causal: Causal::BottomRight,
                mask: true,
                ..halves
            };
            for config in [halves, masked] {
                let backward = config.plan_backward(device, shape, given).unwrap();
                all.extend(backward.dispatches.into_iter().map(backward_needs));
            }
        }
        for config in with_options(plain, (head_dim, value_dim) == (16, 16)) {
            for variant in config.variants(device) {
                let config = AttentionConfig {
                    variant: Some(variant),
                    ..config
                };
                let given = AttentionGiven {
                    kv_lengths: config.alibi,
                    log_sum_exp: true,
                };
                all.extend(launches(config.plan(device, shape, given).unwrap()));
                if [16, 97, 512].contains(&head_dim) {
                    all.extend(launches(config.plan(device, decode, given).unwrap()));
                }
                if [(16, 16), (128, 128)].contains(&(head_dim, value_dim)) {
                    all.extend(launches(config.plan(device, many, given).unwrap()));
                }
            }
            let given = AttentionBackwardGiven {
                kv_lengths: config.alibi,
                grad_bias: config.bias.is_some(),
                grad_sinks: config.sinks,
            };
            for shape in [shape, many] {
                let backward = config.plan_backward(device, shape, given).unwrap();
                all.extend(backward.dispatches.into_iter().map(backward_needs));
            }
            let weights = config.plan_weights(device, shape, Chosen::all(&shape), config.alibi);
            all.extend(launches(weights.unwrap()));
        }
    }
    all
}

/// The configuration with causal mask and without, and if asked for with everything else that makes a kernel.
fn with_options(plain: AttentionConfig, options: bool) -> Vec<AttentionConfig> {
    let causal = AttentionConfig {
        causal: Causal::TopLeft,
        ..plain
    };
    let mut all = vec![plain, causal];
    if options {
        all.extend(
            [ElementType::F16, ElementType::Bf16].map(|element| AttentionConfig {
                element,
                bias: Some(element),
                ..plain
            }),
        );
        all.push(AttentionConfig {
            causal: Causal::BottomRight,
            window_left: Some(30),
            softcap: Some(2.0),
            dropout: Some(0.1),
            bias: Some(ElementType::F32),
            mask: true,
            alibi: true,
            sinks: true,
            ..plain
        });
    }
    all
}

fn gemm(device: &Capabilities) -> Vec<Launch> {
    let mut all = Vec::new();
    for options in 0..16 {
        let config = GemmConfig {
            transpose_a: options & 1 != 0,
            transpose_b: options & 2 != 0,
            bias: options & 4 != 0,
            a_element: ElementType::ALL[options % 3],
            b_element: ElementType::ALL[options / 3 % 3],
            accumulate: options & 8 != 0,
            variant: None,
        };
        for rows in [1, 2, 5, 16, 100] {
            let shape = GemmShape::new(&config, rows, 70, 50);
            all.extend(launches(config.plan(device, shape).unwrap()));
        }
    }
    all
}

fn recurrent(device: &Capabilities) -> Vec<Launch> {
    let mut all = Vec::new();
    let cells = [
        (Cell::RnnTanh, false),
        (Cell::RnnRelu, false),
        (Cell::Lstm, false),
        (Cell::LstmCoupled, true),
        (Cell::Gru, false),
        (Cell::GruResetBefore, false),
    ];
    for (cell, peephole) in cells {
        let widths = if peephole {
            &[13, 700][..]
        } else {
            &[13, 64, 128, 700]
        };
        for &hidden_size in widths {
            let config = RecurrentConfig {
                cell,
                input_size: 50,
                hidden_size,
                proj_size: peephole.then_some(9),
                num_layers: 2,
                direction: Direction::Bidirectional,
                peephole,
                dropout: 0.5,
                gradients: true,
                activations: peephole.then_some([cell.activations(); 2]),
                clip: Some(1.0),
                ..Default::default()
            };
            all.extend(
                config
                    .pack_dispatches()
                    .into_iter()
                    .map(|pack| (Variant::Portable, pack)),
            );
            let half = ElementType::ALL[1 + hidden_size as usize % 2];
            let halves = RecurrentConfig {
                element: half,
                weights: half,
                batch_first: true,
                ..config
            };
            let packs = halves.pack_dispatches().into_iter();
            all.extend(packs.map(|pack| (Variant::Portable, pack)));
            for batch in [1, 3, 16] {
                let persistent = RecurrentConfig {
                    batch_first: true,
                    gradients: false,
                    tier: Some(Tier::Persistent),
                    ..config
                };
                let shape = RecurrentShape {
                    seq_len: 5,
                    batch,
                    seed: 0,
                };
                let given = Given::default();
                all.extend(launches(persistent.plan(device, shape, given).unwrap()));
                for (lengths, checkpoint_every) in [(false, None), (true, Some(2))] {
                    let halves = RecurrentConfig {
                        checkpoint_every,
                        ..halves
                    };
                    let given = Given {
                        lengths,
                        reserve: true,
                        ..Default::default()
                    };
                    all.extend(launches(halves.plan(device, shape, given).unwrap()));
                    let given = RecurrentBackwardGiven {
                        lengths,
                        grad_output: true,
                        grad_input: true,
                        parameters: true,
                        ..Default::default()
                    };
                    let plan = halves.plan_backward(device, shape, given);
                    all.extend(launches(plan.unwrap()));
                }
                for variant in config.variants(device) {
                    let config = RecurrentConfig {
                        variant: Some(variant),
                        ..config
                    };
                    for tier in config.tiers(device, batch) {
                        let config = RecurrentConfig {
                            tier: Some(tier),
                            ..config
                        };
                        let shape = RecurrentShape {
                            seq_len: 5,
                            batch,
                            seed: 0,
                        };
                        for reserve in [false, true] {
                            let given = Given {
                                reserve,
                                ..Default::default()
                            };
                            all.extend(launches(config.plan(device, shape, given).unwrap()));
                        }
                        // more than a binding holds: several chunks
                        let few = Capabilities {
                            storage_binding_size: 64 << 10,
                            ..*device
                        };
                        for (device, grad_norms) in [(&few, false), (device, true)] {
                            let given = RecurrentBackwardGiven {
                                lengths: true,
                                grad_input: true,
                                grad_h_0: true,
                                parameters: true,
                                bias: true,
                                grad_norms,
                                ..Default::default()
                            };
                            let plan = config.plan_backward(device, shape, given);
                            all.extend(launches(plan.unwrap()));
                            let checkpoints = RecurrentConfig {
                                checkpoint_every: Some(2),
                                ..config
                            };
                            let plan = checkpoints.plan_backward(device, shape, given);
                            all.extend(launches(plan.unwrap()));
                        }
                    }
                }
            }
        }
    }
    all
}

fn attention_append(device: &Capabilities) -> Vec<Launch> {
    let shape = AttentionAppendShape {
        batch: 2,
        num_kv_heads: 2,
        new_tokens: 3,
        capacity: 16,
        cache_layout: Layout::Bhsd,
        tokens_layout: Layout::Bhsd,
        paged: None,
    };
    let pages = Paged {
        num_blocks: 8,
        block_size: 4,
        max_blocks: 4,
    };
    let mut all = Vec::new();
    for element in ElementType::ALL.iter().copied() {
        for paged in [None, Some(pages)] {
            let config = AttentionAppendConfig {
                head_dim: 16,
                value_dim: None,
                element,
                tokens: ElementType::F32,
            };
            let shape = AttentionAppendShape { paged, ..shape };
            all.extend(launches(config.plan(device, shape).unwrap()));
        }
    }
    all
}

fn recurrent_probe(_: &Capabilities) -> Vec<Launch> {
    vec![(Variant::Portable, gatefold::probe_dispatch(8))]
}

fn cooperative_probe(device: &Capabilities) -> Vec<Launch> {
    let dispatch = gatefold::cooperative_probe_dispatch(device);
    dispatch
        .map(|dispatch| (Variant::Cooperative, dispatch))
        .into_iter()
        .collect()
}

fn gradient_clip(device: &Capabilities) -> Vec<Launch> {
    use gatefold::GradientClipConfig::{Norm, Value};
    let plans = [Norm(1.0), Value(1.0)].map(|clip| clip.plan(device, &[5, 70_000]).unwrap());
    plans.into_iter().flat_map(launches).collect()
}

fn peak(device: &Capabilities) -> Vec<Launch> {
    let launch = |dispatch: Dispatch| match dispatch.kernel.name {
        "peak_cooperative" => (Variant::Cooperative, dispatch),
        _ => (Variant::Portable, dispatch),
    };
    gatefold::peak::dispatches(device)
        .into_iter()
        .map(launch)
        .collect()
}

fn scan(device: &Capabilities) -> Vec<Launch> {
    let mut all = Vec::new();
    let config = ScanConfig::default();
    for (width, lengths) in [(5, false), (70_000, true)] {
        let shape = ScanShape {
            seq_len: 300,
            batch: 1,
            width,
        };
        let given = ScanGiven {
            h_0: true,
            lengths,
            h_n: true,
        };
        all.extend(launches(config.plan(device, shape, given).unwrap()));
        for grad_output in [false, true] {
            let given = ScanBackwardGiven {
                h_0: true,
                lengths,
                grad_output,
                grad_h_n: true,
                grad_h_0: true,
            };
            all.extend(launches(
                config.plan_backward(device, shape, given).unwrap(),
            ));
        }
    }
    all
}

fn min_recurrent(device: &Capabilities) -> Vec<Launch> {
    let mut all = Vec::new();
    let shape = MinRecurrentShape {
        seq_len: 300,
        batch: 2,
    };
    for cell in [MinCell::Gru, MinCell::Lstm] {
        for candidate in [Candidate::Linear, Candidate::Positive] {
            for lengths in [false, true] {
                let config = MinRecurrentConfig {
                    cell,
                    candidate,
                    num_layers: 2,
                    ..Default::default()
                };
                let packs = config.pack_dispatches().into_iter();
                all.extend(packs.map(|pack| (Variant::Portable, pack)));
                let given = MinRecurrentGiven {
                    h_0: true,
                    lengths,
                    h_n: true,
                    reserve: lengths,
                };
                all.extend(launches(config.plan(device, shape, given).unwrap()));
                let given = MinRecurrentBackwardGiven {
                    h_0: true,
                    lengths,
                    grad_output: lengths,
                    grad_h_n: true,
                    grad_input: true,
                    grad_h_0: true,
                };
                all.extend(launches(
                    config.plan_backward(device, shape, given).unwrap(),
                ));
            }
        }
    }
    all
}

/// Devices that stand for the kinds there are: GPUs and CPUs, with subgroups of one size, of several or none.
fn devices() -> Vec<Capabilities> {
    const KINDS: [(bool, Option<(u32, u32)>); 9] = [
        (false, None),
        (false, Some((32, 32))),
        (false, Some((64, 64))),
        (false, Some((32, 64))),
        (false, Some((4, 64))),
        (true, None),
        (true, Some((4, 4))),
        (true, Some((8, 8))),
        (true, Some((32, 32))),
    ];
    let mut devices = vec![Capabilities::floor()];
    for (cpu, subgroup_size) in KINDS {
        for kilobytes in [16, 32, 48] {
            devices.push(Capabilities {
                cpu,
                subgroup_size,
                cooperative: match subgroup_size {
                    Some((8, 8)) => Some(8),
                    Some((32, 32) | (64, 64)) => Some(16),
                    _ => None,
                },
                workgroup_memory: kilobytes * 1024,
                ..Capabilities::floor()
            });
        }
    }
    devices
}

/// One form of a kernel, the weakest limits among the devices it is planned for, and what it may use.
pub struct Form {
    pub kernel: Kernel,
    pub constants: Constants,
    pub variant: Variant,
    pub workgroup_memory: u32,
    pub workgroup_invocations: u32,
}

/// All forms, each once.
pub fn forms() -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    let mut known = HashMap::new();
    for device in devices() {
        for (
            variant,
            Dispatch {
                kernel,
                constants,
                params,
                ..
            },
        ) in OPERATIONS.iter().flat_map(|launches| launches(&device))
        {
            assert_eq!(params.len(), 4 * kernel.params.len(), "{}", kernel.name);
            let at = *known
                .entry((kernel.clone(), constants.clone(), variant))
                .or_insert(forms.len());
            if at == forms.len() {
                forms.push(Form {
                    kernel,
                    constants,
                    variant,
                    workgroup_memory: u32::MAX,
                    workgroup_invocations: u32::MAX,
                });
            }
            let form = &mut forms[at];
            form.workgroup_memory = form.workgroup_memory.min(device.workgroup_memory);
            form.workgroup_invocations =
                form.workgroup_invocations.min(device.workgroup_invocations);
        }
    }
    forms
}
