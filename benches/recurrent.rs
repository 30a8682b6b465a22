//! Recurrence on the device: `cargo bench --bench recurrent`. Each shape is checked before it is timed.

#[path = "common/mod.rs"]
mod bench;
#[path = "../tests/common/mod.rs"]
mod common;

use bench::{Bench, shapes};
use common::recurrent::{Case, SMALL, pack};
use common::{Output, gpu};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatefold::reference::compare::{Tolerance, compare};
use gatefold::{Bound, Cell, Gpu, Recurrent, RecurrentBuffers, Tier};

struct Named {
    name: &'static str,
    cell: Cell,
    /// batch, seq_len, input_size and hidden_size alike
    sizes: [u32; 3],
}

const SHAPES: [Named; 6] = [
    Named {
        name: "lstm, 64 steps, 128 wide, batch 1",
        cell: Cell::Lstm,
        sizes: [1, 64, 128],
    },
    Named {
        name: "lstm, 64 steps, 128 wide, batch 32",
        cell: Cell::Lstm,
        sizes: [32, 64, 128],
    },
    Named {
        name: "lstm, 64 steps, 512 wide, batch 1",
        cell: Cell::Lstm,
        sizes: [1, 64, 512],
    },
    Named {
        name: "gru, 64 steps, 512 wide, batch 1",
        cell: Cell::Gru,
        sizes: [1, 64, 512],
    },
    Named {
        name: "gru reset before, 64 steps, 512 wide, batch 1",
        cell: Cell::GruResetBefore,
        sizes: [1, 64, 512],
    },
    Named {
        name: "rnn, 64 steps, 512 wide, batch 1",
        cell: Cell::RnnTanh,
        sizes: [1, 64, 512],
    },
];

impl Named {
    fn case(&self) -> Case {
        let [batch, seq_len, width] = self.sizes;
        Case {
            cell: self.cell,
            input_size: width,
            hidden_size: width,
            seq_len,
            batch,
            states: false,
            magnitude: 1.0,
            ..SMALL
        }
    }

    /// Binds random tensors and checks the result: no number for a wrong one.
    fn checked(&self, gpu: &Gpu, op: &Recurrent) -> Bound {
        let case = self.case();
        let inputs = case.inputs();
        let packed = pack(gpu, op, &inputs);
        let input = gpu.upload("input", &inputs.input).unwrap();
        let truth = inputs.reference::<f64>(&case).output;
        let yardstick = inputs.reference::<f32>(&case).output;
        let output = Output::new(gpu, truth.len());
        let scratch = gpu.zeros("scratch", op.scratch_size(case.shape()).unwrap());
        let scratch = scratch.unwrap();
        let buffers = RecurrentBuffers::new(
            input.slice(..),
            packed.slice(..),
            output.buffer.slice(..),
            scratch.slice(..),
        );
        let bound = op.bind(case.shape(), buffers).unwrap();
        gpu.run(|pass| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
        let shape = [truth.len() / self.sizes[2] as usize, self.sizes[2] as usize];
        let got = output.read(gpu);
        let agreement = compare(
            "output",
            &shape,
            &got,
            &truth,
            &yardstick,
            Tolerance::RECURRENT,
        );
        if let Err(difference) = agreement {
            panic!("{}: {difference}", self.name);
        }
        bound
    }
}

fn recurrent(criterion: &mut Criterion) {
    let Some(gpu) = gpu() else { return };
    let mut bench = Bench::new(criterion, gpu, "recurrent");
    for named in shapes(&SHAPES) {
        for tier in [Tier::Stepped, Tier::Resident] {
            let case = named.case();
            let config = case.config(Some(tier), None);
            let Ok(op) = Recurrent::new(gpu.context(), config) else {
                // the state does not fit the workgroup memory
                continue;
            };
            let bound = named.checked(gpu, &op);
            let id = BenchmarkId::new(named.name, tier.name());
            bench.time(id, case.seq_len.into(), &bound);
        }
    }
}

criterion_group!(benches, recurrent);
criterion_main!(benches);
