//! The matrix product on the device: `cargo bench --bench gemm`. Each shape is checked before it is timed.

#[path = "common/mod.rs"]
mod bench;
#[path = "../tests/common/mod.rs"]
mod common;

use bench::{Bench, shapes};
use common::{Output, Random, gpu};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatefold::reference::compare::{Tolerance, compare};
use gatefold::reference::{convert, gemm as reference};
use gatefold::{Bound, Gemm, GemmBuffers, GemmConfig, GemmShape, Gpu};

/// m, n, k: the input projections of an LSTM 256 wide for one step, 64 and 512 steps, and a square.
const SHAPES: [[u32; 3]; 4] = [
    [64, 1024, 256],
    [1, 1024, 256],
    [512, 1024, 256],
    [512, 512, 512],
];

/// Binds random matrices and checks the product: no number for a wrong one.
fn checked(gpu: &Gpu, op: &Gemm, [m, n, k]: [u32; 3], shape: GemmShape) -> Bound {
    let mut random = Random::new(1);
    let a = random.normals((m * k) as usize, 1.0);
    let b = random.normals((k * n) as usize, 1.0);
    let output = Output::new(gpu, (m * n) as usize);
    let [a_buffer, b_buffer] = [&a, &b].map(|data| gpu.upload("matrix", data).unwrap());
    let buffers = GemmBuffers {
        a: a_buffer.slice(..),
        b: b_buffer.slice(..),
        bias: None,
        output: output.buffer.slice(..),
    };
    let bound = op.bind(shape, buffers).unwrap();
    gpu.run(|pass| {
        bound.record(pass);
        Ok(())
    })
    .unwrap();
    let sizes = [m, n, k].map(|size| size as usize);
    let yardstick = reference::gemm(sizes[2], sizes[1], &a, &b, None);
    let [a, b] = [&a, &b].map(|data| convert::<f64>(data));
    let truth = reference::gemm(sizes[2], sizes[1], &a, &b, None);
    let got = output.read(gpu);
    let shape = &sizes[..2];
    if let Err(difference) = compare(
        "output",
        shape,
        &got,
        &truth,
        &yardstick,
        Tolerance::FORWARD,
    ) {
        panic!("{m} x {n} x {k}: {difference}");
    }
    bound
}

fn gemm(criterion: &mut Criterion) {
    let Some(gpu) = gpu() else { return };
    let mut bench = Bench::new(criterion, gpu, "gemm");
    let config = GemmConfig::default();
    let op = Gemm::new(gpu.context(), config).unwrap();
    for &[m, n, k] in shapes(&SHAPES) {
        let shape = GemmShape::new(&config, m, n, k);
        let plan = op.plan(shape).unwrap();
        let bound = checked(gpu, &op, [m, n, k], shape);
        let id = BenchmarkId::new(format!("{m} x {n} x {k}"), plan.variant);
        bench.time(id, plan.flops as u64, &bound);
    }
}

criterion_group!(benches, gemm);
criterion_main!(benches);
