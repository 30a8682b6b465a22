//! Attention on the device: `cargo bench --bench attention`. Each shape is checked before it is timed.

#[path = "common/mod.rs"]
mod bench;
#[path = "../tests/common/mod.rs"]
mod common;

use bench::{Bench, shapes};
use common::{Output, Random, gpu};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatefold::reference::compare::{Tolerance, compare};
use gatefold::reference::{attention as reference, convert};
use gatefold::{
    Attention, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape, Bound, Causal,
    Gpu,
};

struct Named {
    name: &'static str,
    /// batch, heads, key/value heads, q_len, kv_len
    shape: [u32; 5],
    head_dim: u32,
    causal: Causal,
}

const SHAPES: [Named; 4] = [
    Named {
        name: "cross, 64 queries, 77 keys",
        shape: [1, 8, 8, 64, 77],
        head_dim: 64,
        causal: Causal::No,
    },
    Named {
        name: "prefill, 512 tokens, causal",
        shape: [1, 8, 8, 512, 512],
        head_dim: 64,
        causal: Causal::TopLeft,
    },
    Named {
        name: "decode, 4096 keys, grouped heads",
        shape: [1, 32, 8, 1, 4096],
        head_dim: 64,
        causal: Causal::BottomRight,
    },
    Named {
        name: "prefill, 1024 tokens, head_dim 128, causal",
        shape: [1, 8, 2, 1024, 1024],
        head_dim: 128,
        causal: Causal::TopLeft,
    },
];

impl Named {
    fn shape(&self) -> AttentionShape {
        let [batch, heads, kv_heads, q_len, kv_len] = self.shape;
        AttentionShape::new(batch, heads, kv_heads, q_len, kv_len)
    }

    fn config(&self) -> AttentionConfig {
        AttentionConfig {
            head_dim: self.head_dim,
            causal: self.causal,
            ..Default::default()
        }
    }

    fn problem(&self) -> reference::Problem<'static> {
        let [batch, heads, kv_heads, q_len, kv_len] = self.shape.map(|len| len as usize);
        let head_dim = self.head_dim as usize;
        reference::Problem {
            causal: self.causal,
            ..reference::Problem::plain(batch, heads, kv_heads, q_len, kv_len, head_dim, head_dim)
        }
    }

    /// Binds random tensors and checks the result: no number for a wrong one.
    fn checked(&self, gpu: &Gpu) -> Bound {
        let p = self.problem();
        let mut random = Random::new(1);
        let rows = p.batch * p.num_heads * p.q_len;
        let query = random.normals(rows * p.head_dim, 1.5);
        let keys = p.batch * p.num_kv_heads * p.kv_len * p.head_dim;
        let key = random.normals(keys, 1.0);
        // not around 0, where the mean of a row may vanish and its relative error with it
        let value: Vec<f32> = random.normals(keys, 1.0).iter().map(|v| v + 0.7).collect();
        let output = Output::new(gpu, rows * p.head_dim);
        let tensors = [&query, &key, &value].map(|data| gpu.upload("tensor", data).unwrap());
        let [q, k, v] = tensors.each_ref().map(|buffer| buffer.slice(..));
        let buffers = AttentionBuffers::new(q, k, v, output.buffer.slice(..));
        let op = Attention::new(gpu.context(), self.config()).unwrap();
        let bound = op.bind(self.shape(), buffers).unwrap();
        gpu.run(|pass| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
        let got = output.read(gpu);
        let yardstick = reference::attention(&p, &query, &key, &value).output;
        let [query, key, value] = [&query, &key, &value].map(|data| convert::<f64>(data));
        let truth = reference::attention(&p, &query, &key, &value).output;
        let shape = [p.batch, p.num_heads, p.q_len, p.head_dim];
        let agreement = compare(
            "output",
            &shape,
            &got,
            &truth,
            &yardstick,
            Tolerance::FORWARD,
        );
        if let Err(difference) = agreement {
            panic!("{}: {difference}", self.name);
        }
        bound
    }
}

fn attention(criterion: &mut Criterion) {
    let Some(gpu) = gpu() else { return };
    let mut bench = Bench::new(criterion, gpu, "attention");
    for named in shapes(&SHAPES) {
        let op = Attention::new(gpu.context(), named.config()).unwrap();
        let plan = op.plan(named.shape(), AttentionGiven::default()).unwrap();
        let bound = named.checked(gpu);
        let id = BenchmarkId::new(named.name, plan.variant);
        bench.time(id, plan.flops as u64, &bound);
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);
