//! What the benches of all operations share: the device clock as criterion's, and the shapes of a run.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use gatefold::clock::Clock;
use gatefold::{Bound, Gpu};

/// All shapes under `cargo bench`. Without `--bench` criterion runs each once, as a test: only the first, since a
/// CPU would take long over the others.
pub fn shapes<T>(all: &[T]) -> &[T] {
    let timing = std::env::args().any(|argument| argument == "--bench");
    if timing { all } else { &all[..1] }
}

/// The benches of one operation.
pub struct Bench<'c> {
    group: BenchmarkGroup<'c, WallTime>,
    clock: Clock,
}

impl<'c> Bench<'c> {
    pub fn new(criterion: &'c mut Criterion, gpu: &Gpu, operation: &str) -> Self {
        let mut group = criterion.benchmark_group(operation);
        group.sample_size(10);
        Self {
            group,
            clock: Clock::new(gpu).unwrap(),
        }
    }

    /// Times what has been checked. Criterion prints `elements` per second.
    pub fn time(&mut self, id: BenchmarkId, elements: u64, bound: &Bound) {
        let clock = &self.clock;
        self.group.throughput(Throughput::Elements(elements));
        self.group.bench_function(id, |bencher| {
            bencher.iter_custom(|n| clock.time(n, |pass| bound.record(pass)).unwrap());
        });
    }
}
