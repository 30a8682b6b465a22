//! Additive attention on the device: `cargo bench --bench additive_attention`. Each shape is checked before it is
//! timed.

#[path = "common/mod.rs"]
mod bench;
#[path = "../tests/common/mod.rs"]
mod common;

use bench::{Bench, shapes};
use common::additive_attention::{Case, Run, SMALL, check_on};
use common::gpu;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const fn shape(batch: u32, q_len: u32, kv_len: u32, dim: u32) -> Case {
    Case {
        batch,
        q_len,
        kv_len,
        dim,
        value_dim: dim,
        ..SMALL
    }
}

/// A sentence and its translation, with narrow and wide states; one long text; one step of a decoder.
const SHAPES: [(&str, Case); 4] = [
    ("8 x 64 x 64, dim 128", shape(8, 64, 64, 128)),
    ("1 x 512 x 512, dim 64", shape(1, 512, 512, 64)),
    ("8 x 64 x 64, dim 512", shape(8, 64, 64, 512)),
    ("16 x 1 x 512, dim 128", shape(16, 1, 512, 128)),
];

fn additive_attention(criterion: &mut Criterion) {
    let Some(gpu) = gpu() else { return };
    let mut bench = Bench::new(criterion, gpu, "additive_attention");
    for (name, case) in shapes(&SHAPES) {
        let inputs = case.inputs();
        check_on(std::slice::from_ref(gpu), *case, &inputs);
        let run = Run::new(gpu, case, None, &inputs);
        let capabilities = gpu.context().capabilities();
        let config = case.config(None);
        let plans = [
            (
                "forward and weights",
                config.plan(capabilities, case.shape(), true, true),
            ),
            ("backward", config.plan_backward(capabilities, case.shape())),
        ];
        run.once(gpu);
        for ((pass, plan), bound) in plans.into_iter().zip(&run.bounds) {
            let id = BenchmarkId::new(format!("{name}, {pass}"), plan.as_ref().unwrap().variant);
            bench.time(id, plan.unwrap().flops as u64, bound);
        }
    }
}

criterion_group!(benches, additive_attention);
criterion_main!(benches);
