//! The support matrix in README.md is what the plans say. `GATEFOLD_UPDATE=1` writes it anew.

use std::fmt::Write;

use gatefold::{
    AttentionConfig, AttentionGiven, AttentionShape, Capabilities, Cell, GemmConfig, GemmShape,
    Given, Plan, RecurrentConfig, RecurrentShape, Variant,
};

const BEGIN: &str = "<!-- support matrix: begin -->\n";
const END: &str = "<!-- support matrix: end -->\n";

/// A kind of device, in the words of the table's head.
fn devices() -> [(&'static str, Capabilities); 4] {
    let floor = Capabilities::floor();
    let subgroups = |size| Capabilities {
        subgroup_size: Some(size),
        workgroup_memory: 32 << 10,
        workgroup_invocations: 1024,
        ..floor
    };
    [
        ("WebGPU's default limits, no features", floor),
        ("GPU with subgroups", subgroups((32, 32))),
        ("CPU without subgroups", Capabilities { cpu: true, ..floor }),
        (
            "CPU with subgroups of 8",
            Capabilities {
                cpu: true,
                ..subgroups((8, 8))
            },
        ),
    ]
}

fn attention(device: &Capabilities) -> Plan {
    let shape = AttentionShape::new(1, 8, 8, 512, 512);
    AttentionConfig::default()
        .plan(device, shape, AttentionGiven::default())
        .unwrap()
}

fn recurrent(device: &Capabilities, hidden_size: u32) -> Plan {
    let config = RecurrentConfig {
        cell: Cell::Lstm,
        input_size: hidden_size,
        hidden_size,
        ..Default::default()
    };
    config
        .plan(
            device,
            RecurrentShape {
                seq_len: 512,
                batch: 1,
                seed: 0,
            },
            Given::default(),
        )
        .unwrap()
}

fn gemm(device: &Capabilities) -> Plan {
    let config = GemmConfig::default();
    config
        .plan(device, GemmShape::new(&config, 512, 512, 512))
        .unwrap()
}

/// What the table calls an operation, and its plan for a device.
type Row = (&'static str, fn(&Capabilities) -> Plan);

const ROWS: [Row; 4] = [
    ("attention, 512 tokens, head_dim 64", attention),
    ("RNN, LSTM, GRU, here an LSTM 64 wide, batch 1", |device| {
        recurrent(device, 64)
    }),
    ("the same, 1024 wide", |device| recurrent(device, 1024)),
    ("GEMM", gemm),
];

fn matrix() -> String {
    let mut table = String::from("| f32, forward |");
    for (name, _) in devices() {
        write!(table, " {name} |").unwrap();
    }
    table.push_str("\n|---|---|---|---|---|\n");
    for (name, plan) in ROWS {
        write!(table, "| {name} |").unwrap();
        for (_, device) in devices() {
            let Plan {
                variant, describe, ..
            } = plan(&device);
            let marker = if variant == Variant::Portable {
                ""
            } else {
                "*"
            };
            write!(table, " {marker}{variant}{marker}: {describe} |").unwrap();
        }
        table.push('\n');
    }
    table
}

#[test]
fn the_support_matrix_is_that_of_the_plans() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("README.md has the matrix");
    let (found, after) = rest.split_once(END).expect("README.md ends the matrix");
    if std::env::var("GATEFOLD_UPDATE").is_ok_and(|value| value == "1") {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", matrix())).unwrap();
    } else {
        assert_eq!(
            found,
            matrix(),
            "remake it: GATEFOLD_UPDATE=1 cargo test --test readme"
        );
    }
}
