//! What each operation plans on a device, over configurations that differ in their kernels.

use gatefold::kernel::Dispatch;
use gatefold::{
    AttentionConfig, AttentionShape, Capabilities, Causal, Cell, Direction, GemmConfig, GemmShape,
    Given, Plan, RecurrentConfig, RecurrentShape, Variant, peak as roof,
};

pub fn attention(device: &Capabilities) -> Vec<Plan> {
    const DIMS: [(u32, u32); 11] = [
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
    ];
    let mut plans = Vec::new();
    for (head_dim, value_dim) in DIMS {
        for causal in [Causal::No, Causal::TopLeft] {
            for variant in AttentionConfig::default().variants(device) {
                let config = AttentionConfig {
                    head_dim,
                    value_dim: Some(value_dim),
                    causal,
                    variant: Some(variant),
                    ..Default::default()
                };
                let shape = AttentionShape::new(2, 6, 2, 65, 129);
                plans.push(config.plan(device, shape, true).unwrap());
            }
        }
    }
    plans
}

pub fn gemm(device: &Capabilities) -> Vec<Plan> {
    let mut plans = Vec::new();
    for flags in 0..16_u32 {
        let flag = |bit: u32| flags >> bit & 1 == 1;
        let config = GemmConfig {
            transpose_a: flag(0),
            transpose_b: flag(1),
            bias: flag(2),
            accumulate: flag(3),
        };
        for m in [1, 2, 3, 8, 16, 100] {
            let shape = GemmShape::new(&config, m, 70, 33);
            plans.push(config.plan(device, shape).unwrap());
        }
    }
    plans
}

pub fn peak(_: &Capabilities) -> Vec<Plan> {
    vec![portable(roof::dispatches())]
}

/// What is planned outside of a call.
fn portable(dispatches: Vec<Dispatch>) -> Plan {
    Plan {
        variant: Variant::Portable,
        describe: String::new(),
        dispatches,
        scratch_size: 0,
        flops: 0.0,
        bytes: 0.0,
    }
}

pub fn recurrent(device: &Capabilities) -> Vec<Plan> {
    // the widths differ in tiles and in whether weights stay in registers
    const CASES: [(Cell, &[u32]); 4] = [
        (Cell::RnnTanh, &[1, 100]),
        (Cell::RnnRelu, &[33]),
        (Cell::Lstm, &[13, 64, 1024]),
        (Cell::Gru, &[7, 40, 512]),
    ];
    let mut plans = Vec::new();
    for (cell, widths) in CASES {
        for &hidden_size in widths {
            for batch in [1, 5] {
                let config = RecurrentConfig {
                    cell,
                    input_size: 5,
                    hidden_size,
                    direction: Direction::Bidirectional,
                    ..Default::default()
                };
                plans.extend(tiers_and_variants(device, &config, batch));
            }
        }
    }
    plans
}

fn tiers_and_variants(device: &Capabilities, config: &RecurrentConfig, batch: u32) -> Vec<Plan> {
    let is_lstm = config.cell == Cell::Lstm;
    let all = Given {
        h_0: true,
        c_0: is_lstm,
        lengths: true,
        h_n: true,
        c_n: is_lstm,
    };
    let mut plans = vec![portable(config.pack_dispatches())];
    for tier in config.tiers(device, batch) {
        for variant in config.variants(device) {
            let forced = RecurrentConfig {
                tier: Some(tier),
                variant: Some(variant),
                ..*config
            };
            for (seq_len, given) in [(3, all), (0, Given::default())] {
                let shape = RecurrentShape { seq_len, batch };
                plans.push(forced.plan(device, shape, given).unwrap());
            }
        }
    }
    plans
}
