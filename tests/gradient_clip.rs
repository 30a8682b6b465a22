//! Gradient clipping on the device against the f64 reference.

mod common;

use common::{Output, Random, bits, gpu};
use gatefold::reference::compare::{Tolerance, compare};
use gatefold::reference::gradient_clip::{clip_norm, clip_value};
use gatefold::{Capabilities, Checks, Gpu, GradientClip, GradientClipBuffers, GradientClipConfig};

const LENS: [usize; 5] = [1, 0, 7000, 64, 333];

fn gradients(scale: f32) -> Vec<Vec<f32>> {
    let mut random = Random::new(3);
    LENS.iter().map(|&len| random.normals(len, scale)).collect()
}

/// The clipped gradients, and norm and factor; twice, with the same bits.
fn run(gpu: &Gpu, config: GradientClipConfig, gradients: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let op = GradientClip::new(gpu.context(), config).unwrap();
    let lens: Vec<u64> = gradients.iter().map(|g| g.len() as u64).collect();
    let by_norm = matches!(config, GradientClipConfig::Norm(_));
    let scratch = Output::new(gpu, op.scratch_size(&lens).unwrap() as usize / 4);
    let norm = Output::new(gpu, if by_norm { 2 } else { 0 });
    let outputs: Vec<Output> = gradients
        .iter()
        .map(|g| Output::new(gpu, g.len()))
        .collect();
    let slices: Vec<_> = outputs
        .iter()
        .map(|output| output.buffer.slice(..))
        .collect();
    let buffers = GradientClipBuffers {
        gradients: &slices,
        norm: by_norm.then(|| norm.buffer.slice(..)),
        scratch: by_norm.then(|| scratch.buffer.slice(..)),
    };
    let bound = op.bind(&lens, buffers).unwrap();
    let once = || -> Vec<Vec<f32>> {
        scratch.poison(gpu);
        norm.poison(gpu);
        for (output, values) in outputs.iter().zip(gradients) {
            output.poison(gpu);
            gpu.queue()
                .write_buffer(&output.buffer, 0, bytemuck::cast_slice(values));
        }
        gpu.run(|pass| {
            bound.record(pass);
            Ok(())
        })
        .unwrap();
        scratch.read(gpu);
        outputs
            .iter()
            .chain([&norm])
            .map(|output| output.read(gpu))
            .collect()
    };
    let [first, second] = [once(), once()];
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(bits(first), bits(second));
    }
    first
}

fn check(gpu: &Gpu, config: GradientClipConfig, scale: f32) {
    let gradients = gradients(scale);
    let widened = |values: &Vec<f32>| -> Vec<f64> { values.iter().map(|&x| x.into()).collect() };
    let mut truth: Vec<Vec<f64>> = gradients.iter().map(widened).collect();
    let got = run(gpu, config, &gradients);
    match config {
        GradientClipConfig::Norm(max_norm) => {
            let (norm, factor) = clip_norm(&mut truth, max_norm);
            for (got, want) in got[LENS.len()].iter().zip([norm, factor]) {
                let error = (f64::from(*got) - want).abs() / want;
                assert!(error < 1e-6, "{config:?}: {got}, expected {want}");
            }
        }
        GradientClipConfig::Value(max_value) => clip_value(&mut truth, max_value),
    }
    for (at, truth) in truth.iter().enumerate() {
        let shape = [truth.len()];
        let yardstick: Vec<f32> = truth.iter().map(|&x| x as f32).collect();
        let name = format!("gradient {at}");
        compare(
            &name,
            &shape,
            &got[at],
            truth,
            &yardstick,
            Tolerance::FORWARD,
        )
        .unwrap();
    }
}

#[test]
fn gradients_are_bounded() {
    let Some(gpu) = gpu() else { return };
    let few = Capabilities {
        storage_binding_size: 4096,
        ..*gpu.context().capabilities()
    };
    for gpu in [gpu.clone(), gpu.with_capabilities(few, Checks::Checked)] {
        for scale in [1.0, 1e-3, 1e25, 1e-25] {
            check(&gpu, GradientClipConfig::Norm(1.0), scale);
            check(&gpu, GradientClipConfig::Norm(0.25), scale);
            check(&gpu, GradientClipConfig::Value(0.5), scale);
        }
        check(&gpu, GradientClipConfig::Norm(1e9), 1.0);
    }
}

#[test]
fn what_is_not_finite_shows() {
    let Some(gpu) = gpu() else { return };
    let mut gradients = gradients(1.0);
    gradients[2][77] = f32::NAN;
    let got = run(gpu, GradientClipConfig::Norm(1.0), &gradients);
    assert!(got[LENS.len()][0].is_nan());
    assert!(got[0][0].is_nan());
    let got = run(gpu, GradientClipConfig::Value(1.0), &gradients);
    assert!(got[2][77].is_nan() && got[2][76].is_finite());
}

#[test]
fn mistakes_are_named() {
    let floor = Capabilities::floor();
    let wrong = |config: GradientClipConfig| config.plan(&floor, &[1]).unwrap_err().to_string();
    assert_eq!(
        wrong(GradientClipConfig::Norm(-1.0)),
        "max_norm is -1, expected a number of at least 0"
    );
    assert!(wrong(GradientClipConfig::Value(f32::NAN)).starts_with("max_value is 0"));
    let huge = GradientClipConfig::Norm(1.0).plan(&floor, &[u64::MAX, u64::MAX]);
    assert!(
        huge.unwrap_err()
            .to_string()
            .starts_with("launches of one call")
    );
}
