//! The matrix product on the device against the f64 reference, in every guise of the device.

mod common;

use common::{Output, Random, bits, gpu, guises};
use gatefold::reference::compare::{Tolerance, compare};
use gatefold::reference::{convert, gemm as reference};
use gatefold::{ElementType, Gemm, GemmBuffers, GemmConfig, GemmShape, Gpu};

/// A stored matrix: `columns` of each row are used, the rest of `stride` is NaN.
fn strided(x: &[f32], columns: usize, stride: usize) -> Vec<f32> {
    let mut stored = Vec::new();
    for row in x.chunks(columns) {
        stored.extend_from_slice(row);
        stored.resize(stored.len() + stride - columns, f32::NAN);
    }
    stored
}

fn transpose(x: &[f32], columns: usize) -> Vec<f32> {
    (0..x.len())
        .map(|i| x[i % (x.len() / columns) * columns + i / (x.len() / columns)])
        .collect()
}

fn run(gpu: &Gpu, config: GemmConfig, [m, n, k]: [usize; 3], padding: usize) -> [Vec<f32>; 4] {
    let mut random = Random::new((m * 31 + n * 7 + k) as u64);
    let mut rounded = |len, to: ElementType| -> Vec<f32> {
        let values = random.normals(len, 1.0);
        values.into_iter().map(|x| to.round(x)).collect()
    };
    let a = rounded(m * k, config.a_element);
    let b = rounded(k * n, config.b_element);
    let (bias, before) = (random.normals(n, 1.0), random.normals(m * n, 1.0));
    let store = |x: &[f32], columns, transposed| match transposed {
        true => (
            strided(
                &transpose(x, columns),
                x.len() / columns,
                x.len() / columns + padding,
            ),
            x.len() / columns,
        ),
        false => (strided(x, columns, columns + padding), columns),
    };
    let (stored_a, a_columns) = store(&a, k, config.transpose_a);
    let (stored_b, b_columns) = store(&b, n, config.transpose_b);
    let shape = GemmShape {
        a_stride: (a_columns + padding) as u32,
        b_stride: (b_columns + padding) as u32,
        ..GemmShape::new(&config, m as u32, n as u32, k as u32)
    };
    let a_buffer = gpu.upload("a", &config.a_element.words(&stored_a)).unwrap();
    let b_buffer = gpu.upload("b", &config.b_element.words(&stored_b)).unwrap();
    let bias_buffer = gpu.upload("bias", &bias).unwrap();
    let output = Output::new(gpu, m * n);
    let op = Gemm::new(gpu.context(), config).unwrap();
    let buffers = GemmBuffers {
        a: a_buffer.slice(..),
        b: b_buffer.slice(..),
        bias: config.bias.then(|| bias_buffer.slice(..)),
        output: output.buffer.slice(..),
    };
    let bound = op.bind(shape, buffers).unwrap();
    if config.accumulate {
        gpu.queue()
            .write_buffer(&output.buffer, 0, bytemuck::cast_slice(&before));
    }
    gpu.run(|pass| {
        bound.record(pass);
        Ok(())
    })
    .unwrap();
    let got = output.read(gpu);

    fn expected<R: gatefold::reference::Real>(
        config: GemmConfig,
        [_, n, k]: [usize; 3],
        [a, b, bias, before]: [&[f32]; 4],
    ) -> Vec<R> {
        let bias: Vec<R> = convert(bias);
        let product = reference::gemm(
            k,
            n,
            &convert::<R>(a),
            &convert::<R>(b),
            config.bias.then_some(&bias[..]),
        );
        let before = convert::<R>(before).into_iter();
        let sum = |(x, before)| if config.accumulate { x + before } else { x };
        product.into_iter().zip(before).map(sum).collect()
    }
    let inputs = [&a[..], &b, &bias, &before];
    let truth: Vec<f64> = expected(config, [m, n, k], inputs);
    let yardstick: Vec<f32> = expected(config, [m, n, k], inputs);
    if let Err(difference) = compare(
        "output",
        &[m, n],
        &got,
        &truth,
        &yardstick,
        Tolerance::FORWARD,
    ) {
        panic!(
            "{difference}\n{config:?} {m} x {n} x {k}\n{}",
            gpu.describe()
        );
    }
    [a, b, bias, got]
}

fn check(config: GemmConfig, sizes: [usize; 3], padding: usize) {
    let Some(gpu) = gpu() else { return };
    for guise in guises(gpu) {
        run(&guise, config, sizes, padding);
    }
}

#[test]
fn halves_are_widened() {
    for (a, &a_element) in ElementType::ALL.iter().enumerate() {
        for (b, &b_element) in ElementType::ALL.iter().enumerate() {
            let config = GemmConfig {
                a_element,
                b_element,
                transpose_a: (a + b) % 2 == 1,
                transpose_b: a == 1,
                ..Default::default()
            };
            check(config, [9, 65, 17], 3);
        }
    }
}

#[test]
fn sizes_around_the_tiles() {
    for sizes in [
        [1, 1, 1],
        [8, 64, 16],
        [9, 65, 17],
        [64, 64, 64],
        [65, 130, 3],
        [3, 200, 40],
        [130, 5, 70],
    ] {
        check(GemmConfig::default(), sizes, 0);
    }
}

#[test]
fn transposes_and_strides() {
    for (transpose_a, transpose_b) in [(false, true), (true, false), (true, true)] {
        check(
            GemmConfig {
                transpose_a,
                transpose_b,
                ..Default::default()
            },
            [37, 70, 19],
            5,
        );
    }
    check(GemmConfig::default(), [20, 33, 18], 3);
}

#[test]
fn bias_and_accumulation() {
    check(
        GemmConfig {
            bias: true,
            ..Default::default()
        },
        [17, 66, 20],
        0,
    );
    check(
        GemmConfig {
            bias: true,
            accumulate: true,
            ..Default::default()
        },
        [17, 66, 20],
        0,
    );
}

#[test]
fn rows_do_not_depend_on_their_number() {
    let Some(gpu) = gpu() else { return };
    for guise in guises(gpu) {
        let config = GemmConfig {
            bias: true,
            ..Default::default()
        };
        let [a, b, bias, all] = run(&guise, config, [70, 40, 33], 0);
        for rows in [1, 2, 3, 8, 17] {
            let a = guise.upload("a", &a[..rows * 33]).unwrap();
            let b = guise.upload("b", &b).unwrap();
            let bias = guise.upload("bias", &bias).unwrap();
            let output = Output::new(&guise, rows * 40);
            let op = Gemm::new(guise.context(), config).unwrap();
            let buffers = GemmBuffers {
                a: a.slice(..),
                b: b.slice(..),
                bias: Some(bias.slice(..)),
                output: output.buffer.slice(..),
            };
            let shape = GemmShape::new(&config, rows as u32, 40, 33);
            guise.run(|pass| op.record(pass, shape, buffers)).unwrap();
            assert_eq!(
                bits(&output.read(&guise)),
                bits(&all[..rows * 40]),
                "{rows} rows"
            );
        }
    }
}

#[test]
fn mistakes_are_named() {
    let Some(gpu) = gpu() else { return };
    let config = GemmConfig::default();
    let op = Gemm::new(gpu.context(), config).unwrap();
    let shape = GemmShape {
        a_stride: 3,
        ..GemmShape::new(&config, 4, 4, 4)
    };
    assert_eq!(
        op.plan(shape).unwrap_err().to_string(),
        "a_stride is 3, expected at least the length of a row, 4"
    );
    let huge = GemmShape::new(&config, u32::MAX, u32::MAX, u32::MAX);
    let message = op.plan(huge).unwrap_err().to_string();
    assert!(
        message.starts_with("max_storage_buffer_binding_size is "),
        "{message}"
    );
    let buffer = gpu.zeros("matrix", 64).unwrap();
    let output = gpu.zeros("matrix", 64).unwrap();
    let buffers = GemmBuffers {
        a: buffer.slice(..),
        b: buffer.slice(..),
        bias: Some(buffer.slice(..)),
        output: output.slice(..),
    };
    let error = op
        .bind(GemmShape::new(&config, 4, 4, 4), buffers)
        .unwrap_err();
    assert_eq!(error.to_string(), "bias: the configuration has none");
}
