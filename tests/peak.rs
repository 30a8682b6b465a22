//! The clock and the roof on the device of this machine.

mod common;

use std::time::Duration;

use common::gpu;
use gatefold::clock::{Budget, Clock};
use gatefold::peak::Peak;

const QUICK: Budget = Budget {
    total: Duration::from_millis(40),
    samples: 5,
};

#[test]
fn the_roof_is_measured_and_its_kernels_do_the_work() {
    let Some(gpu) = gpu() else { return };
    let peak = Peak::measure(gpu, QUICK).unwrap();
    println!("{peak:?}");
    assert!(peak.gflops > 0.1 && peak.gbytes_per_s > 0.1 && peak.dispatch_us > 0.0);
}

#[test]
fn a_batch_of_passes_takes_some_time() {
    let Some(gpu) = gpu() else { return };
    let clock = Clock::new(gpu).unwrap();
    let config = gatefold::AttentionConfig::default();
    let op = gatefold::Attention::new(gpu.context(), config).unwrap();
    let buffer = || gpu.zeros("tensor", 4 * 64 * 64).unwrap();
    let [query, key, value, output] = [buffer(), buffer(), buffer(), buffer()];
    let shape = gatefold::AttentionShape::new(1, 1, 1, 64, 64);
    let tensors = gatefold::AttentionBuffers::new(
        query.slice(..),
        key.slice(..),
        value.slice(..),
        output.slice(..),
    );
    let bound = op.bind(shape, tensors).unwrap();
    let timing = clock.measure(QUICK, |pass| bound.record(pass)).unwrap();
    assert!(timing.p5_us <= timing.median_us && timing.median_us <= timing.p95_us);
    assert!(timing.median_us > 0.0 && timing.samples >= 1);
    assert_eq!(
        clock.time(0, |pass| bound.record(pass)).unwrap(),
        Duration::ZERO
    );
    assert!(clock.time(50, |pass| bound.record(pass)).unwrap() > Duration::ZERO);
}
