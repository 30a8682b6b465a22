//! Scans on the device: `cargo bench --bench scan`. Each shape is checked before it is timed.

#[path = "common/mod.rs"]
mod bench;
#[path = "../tests/common/mod.rs"]
mod common;

use bench::{Bench, shapes};
use common::gpu;
use common::scan::{Case, SMALL, judge, run};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatefold::{Scan, ScanBackwardBuffers, ScanBuffers};

/// seq_len, batch, width
const SHAPES: [[u32; 3]; 5] = [
    [1024, 1, 256],
    [4096, 1, 1024],
    [16_384, 1, 256],
    [65_536, 1, 16],
    [256, 64, 256],
];

fn scan(criterion: &mut Criterion) {
    let Some(gpu) = gpu() else { return };
    let mut bench = Bench::new(criterion, gpu, "scan");
    for &[seq_len, batch, width] in shapes(&SHAPES) {
        let case = Case {
            seq_len,
            batch,
            width,
            states: false,
            ..SMALL
        };
        let inputs = case.inputs();
        judge(
            &case,
            &inputs,
            &run(gpu, &case, &inputs),
            "no number for a wrong result",
        );
        let op = Scan::new(gpu.context(), case.config()).unwrap();
        let upload = |values: &[f32]| gpu.upload("input", values).unwrap();
        let [a, b, grad] = [&inputs.a, &inputs.b, &inputs.grad_output].map(|x| upload(x));
        let [output, grad_a, grad_b] = [(); 3].map(|()| upload(&inputs.b));
        let scratch = gpu
            .zeros("scratch", op.scratch_size(case.shape()).unwrap())
            .unwrap();
        let forward = ScanBuffers::new(
            a.slice(..),
            b.slice(..),
            output.slice(..),
            scratch.slice(..),
        );
        let backward = ScanBackwardBuffers {
            grad_output: Some(grad.slice(..)),
            ..ScanBackwardBuffers::new(
                a.slice(..),
                output.slice(..),
                grad_a.slice(..),
                grad_b.slice(..),
                scratch.slice(..),
            )
        };
        let forward = op.bind(case.shape(), forward).unwrap();
        let backward = op.bind_backward(case.shape(), backward).unwrap();
        let name = format!("{seq_len} steps, batch {batch}, {width} wide");
        let elements = inputs.a.len() as u64;
        bench.time(BenchmarkId::new(&name, "forward"), elements, &forward);
        bench.time(BenchmarkId::new(&name, "backward"), elements, &backward);
    }
}

criterion_group!(benches, scan);
criterion_main!(benches);
