//! minGRU and minLSTM on the device: `cargo bench --bench min_recurrent`. Each shape is checked before it is timed.

#[path = "common/mod.rs"]
mod bench;
#[path = "../tests/common/mod.rs"]
mod common;

use bench::{Bench, shapes};
use common::gpu;
use common::min_recurrent::{Case, SMALL, judge, pack, run};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatefold::{
    MinCell, MinRecurrent, MinRecurrentBackwardBuffers, MinRecurrentBuffers, MinRecurrentConfig,
};

/// seq_len, batch, input_size and hidden_size alike
const SHAPES: [[u32; 3]; 3] = [[64, 1, 256], [1024, 1, 256], [64, 16, 256]];

fn min_recurrent(criterion: &mut Criterion) {
    let Some(gpu) = gpu() else { return };
    let mut bench = Bench::new(criterion, gpu, "min_recurrent");
    for &[seq_len, batch, width] in shapes(&SHAPES) {
        for (name, cell) in [("mingru", MinCell::Gru), ("minlstm", MinCell::Lstm)] {
            let case = Case {
                config: MinRecurrentConfig {
                    cell,
                    input_size: width,
                    hidden_size: width,
                    ..Default::default()
                },
                seq_len,
                batch,
                states: false,
                magnitude: 1.0,
                ..SMALL
            };
            let inputs = case.inputs();
            judge(
                &case,
                &inputs,
                &run(gpu, &case, &inputs),
                "no number for a wrong result",
            );
            let op = MinRecurrent::new(gpu.context(), case.config).unwrap();
            let (shape, packed) = (case.shape(), pack(gpu, &op, &inputs));
            let upload = |values: &[f32]| gpu.upload("input", values).unwrap();
            let (input, grad) = (upload(&inputs.input), upload(&inputs.grad_output));
            let (output, grad_input) = (upload(&inputs.grad_output), upload(&inputs.input));
            let zeros = |size| gpu.zeros("buffer", size).unwrap();
            let scratch = zeros(op.scratch_size(shape).unwrap());
            let backward_scratch = zeros(op.backward_scratch_size(shape).unwrap());
            let reserve = zeros(op.reserve_size(shape).unwrap());
            let grad_weights = zeros(case.config.gradient_size());
            let inference = MinRecurrentBuffers::new(
                input.slice(..),
                packed.slice(..),
                output.slice(..),
                scratch.slice(..),
            );
            let training = MinRecurrentBuffers {
                reserve: Some(reserve.slice(..)),
                ..inference
            };
            let backward = MinRecurrentBackwardBuffers {
                grad_output: Some(grad.slice(..)),
                grad_input: Some(grad_input.slice(..)),
                ..MinRecurrentBackwardBuffers::new(
                    input.slice(..),
                    packed.slice(..),
                    output.slice(..),
                    reserve.slice(..),
                    grad_weights.slice(..),
                    backward_scratch.slice(..),
                )
            };
            let forward = op.bind(shape, inference).unwrap();
            let training = op.bind(shape, training).unwrap();
            gpu.run(|pass| {
                training.record(pass);
                Ok(())
            })
            .unwrap();
            let backward = op.bind_backward(shape, backward).unwrap();
            let name = format!("{name}, {seq_len} steps, batch {batch}, {width} wide");
            bench.time(BenchmarkId::new(&name, "forward"), seq_len.into(), &forward);
            bench.time(
                BenchmarkId::new(&name, "backward"),
                seq_len.into(),
                &backward,
            );
        }
    }
}

criterion_group!(benches, min_recurrent);
criterion_main!(benches);
