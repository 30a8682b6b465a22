//! The host layer: a caller's own WGSL, what is compiled once, mistakes that come back as errors, and what
//! recording costs.

mod common;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use common::gpu;
use gatefold::kernel::{Access, Constant, Dispatch, Kernel, MAX_STEPS, Operand};
use gatefold::{Attention, AttentionBuffers, AttentionConfig, AttentionShape};
use gatefold::{Capabilities, Checks, Context, Error};

const AFFINE_TEXT: &[&str] = &["
        struct Params { factor: f32, len: u32 }
        @group(0) @binding(0) var<uniform>             params: Params;
        @group(0) @binding(1) var<storage, read>       input:  array<f32>;
        @group(0) @binding(2) var<storage, read_write> output: array<f32>;

        @compute @workgroup_size(64)
        fn affine(@builtin(global_invocation_id) id: vec3<u32>) {
            if (id.x < params.len) {
                output[id.x] = params.factor * input[id.x] + f32(OFFSET);
            }
        }"];

const AFFINE: Kernel = Kernel {
    name: "affine",
    enables: &[],
    parts: Cow::Borrowed(AFFINE_TEXT),
    params: &[("factor", "f32"), ("len", "u32")],
    storage: &[Access::Read, Access::Write],
    stepped: false,
};

const LEN: u32 = 100;

/// `output = 3 * input + 5`
fn affine() -> Dispatch {
    Dispatch {
        kernel: AFFINE,
        constants: vec![("OFFSET", Constant::U32(5))],
        params: [3f32.to_bits(), LEN]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect(),
        operands: ["input", "output"]
            .map(|name| Operand::whole(name, 4 * u64::from(LEN)))
            .to_vec(),
        grid: [2, 1, 1],
        steps: 1,
    }
}

fn numbers() -> Vec<f32> {
    (0..LEN).map(|i| i as f32).collect()
}

fn tripled_plus_five() -> Vec<f32> {
    numbers().iter().map(|x| 3.0 * x + 5.0).collect()
}

/// A device without a driver, for what needs none.
fn noop() -> wgpu::Device {
    wgpu::Device::noop(&wgpu::DeviceDescriptor::default()).0
}

fn buffer(device: &wgpu::Device, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage,
        mapped_at_creation: false,
    })
}

#[test]
fn a_callers_own_kernel_runs() {
    let Some(gpu) = gpu() else { return };
    let input = gpu.upload("input", &numbers()).unwrap();
    let output = gpu.zeros("output", 4 * u64::from(LEN)).unwrap();
    let slices = [("input", input.slice(..)), ("output", output.slice(..))];
    let bound = gpu.context().bind(&[affine()], &slices).unwrap();
    assert_eq!(bound.num_dispatches(), 1);
    gpu.run(|pass| {
        bound.record(pass);
        Ok(())
    })
    .unwrap();
    assert_eq!(gpu.download::<f32>(&output).unwrap(), tripled_plus_five());
}

#[test]
fn steps_run_in_order() {
    let Some(gpu) = gpu() else { return };
    const DIGITS: Kernel = Kernel {
        name: "digits",
        enables: &[],
        parts: Cow::Borrowed(&["
            @group(0) @binding(1) var<storage, read_write> state: array<u32>;
            @group(1) @binding(0) var<uniform>             step:  u32;

            @compute @workgroup_size(1)
            fn digits() {
                state[0] = state[0] * 31u + step;
            }"]),
        params: &[],
        storage: &[Access::Write],
        stepped: true,
    };
    let dispatch = Dispatch {
        kernel: DIGITS,
        constants: vec![],
        params: vec![],
        operands: vec![Operand::whole("state", 4)],
        grid: [1, 1, 1],
        steps: MAX_STEPS,
    };
    let state = gpu.upload("state", &[7u32]).unwrap();
    let dispatches = [
        dispatch.clone(),
        Dispatch {
            steps: 3,
            ..dispatch
        },
    ];
    let bound = gpu
        .context()
        .bind(&dispatches, &[("state", state.slice(..))])
        .unwrap();
    assert_eq!(bound.num_dispatches(), MAX_STEPS + 3);
    gpu.run(|pass| {
        bound.record(pass);
        Ok(())
    })
    .unwrap();
    let steps = (0..MAX_STEPS).chain(0..3);
    let expected = steps.fold(7u32, |state, step| {
        state.wrapping_mul(31).wrapping_add(step)
    });
    assert_eq!(gpu.download::<u32>(&state).unwrap(), [expected]);
}

#[test]
fn one_buffer_holds_input_and_output() {
    let Some(gpu) = gpu() else { return };
    let mut contents = numbers();
    contents.resize(228, -1.0);
    let both = gpu.upload("both", &contents).unwrap();
    let slices = [("input", both.slice(..512)), ("output", both.slice(512..))];
    let bound = gpu.context().bind(&[affine()], &slices).unwrap();
    gpu.run(|pass| {
        bound.record(pass);
        Ok(())
    })
    .unwrap();
    let all: Vec<f32> = gpu.download(&both).unwrap();
    assert_eq!(all[..100], numbers());
    assert_eq!(all[128..], tripled_plus_five());

    let slices = [("input", both.slice(..512)), ("output", both.slice(256..))];
    let error = gpu.context().bind(&[affine()], &slices).unwrap_err();
    assert_eq!(
        error,
        Error::Aliased {
            output: "output",
            other: "input"
        }
    );
}

#[test]
fn a_pipeline_is_compiled_once() {
    let context = Context::new(&noop());
    let config = AttentionConfig {
        head_dim: 128,
        ..Default::default()
    };
    let time = |context: &Context| {
        let start = Instant::now();
        Attention::new(context, config).unwrap();
        start.elapsed()
    };
    let first = time(&context);
    let again = (0..5).map(|_| time(&context.clone())).min().unwrap();
    assert!(again * 5 < first, "{first:?}, then {again:?}");
    // another constant is another pipeline
    let other = AttentionConfig {
        head_dim: 124,
        ..config
    };
    Attention::new(&context, other).unwrap();
    assert_eq!(format!("{context:?}").matches("PipelineKey").count(), 2);
}

#[test]
fn threads_share_a_context() {
    let Some(gpu) = gpu() else { return };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..4u32 {
                    let dispatch = Dispatch {
                        constants: vec![("OFFSET", Constant::U32(round))],
                        ..affine()
                    };
                    let input: Vec<f32> = (0..LEN).map(|i| (1000 * thread + i) as f32).collect();
                    let uploaded = gpu.upload("input", &input).unwrap();
                    let output = gpu.zeros("output", 4 * u64::from(LEN)).unwrap();
                    let slices = [("input", uploaded.slice(..)), ("output", output.slice(..))];
                    let bound = gpu.context().bind(&[dispatch], &slices).unwrap();
                    gpu.run(|pass| {
                        bound.record(pass);
                        Ok(())
                    })
                    .unwrap();
                    let expected: Vec<f32> = input.iter().map(|x| 3.0 * x + round as f32).collect();
                    assert_eq!(gpu.download::<f32>(&output).unwrap(), expected);
                }
            });
        }
    });
}

/// What `bind` says to a dispatch with one input of 400 bytes and one output.
fn refusal(dispatch: Dispatch, input: wgpu::BufferSlice<'_>) -> String {
    let device = noop();
    let output = buffer(&device, 4096, wgpu::BufferUsages::STORAGE);
    let context = Context::with_capabilities(
        &device,
        Capabilities {
            storage_binding_size: 2048,
            ..Capabilities::floor()
        },
        Checks::Checked,
    );
    let slices = [("input", input), ("output", output.slice(..))];
    context.bind(&[dispatch], &slices).unwrap_err().to_string()
}

#[test]
fn unfit_slices_are_errors() {
    let device = noop();
    let storage = buffer(&device, 4096, wgpu::BufferUsages::STORAGE);
    let other = buffer(&device, 4096, wgpu::BufferUsages::COPY_SRC);
    let alignment = device.limits().min_storage_buffer_offset_alignment;
    assert_eq!(
        refusal(affine(), storage.slice(4..)),
        format!("input is 4, expected a slice that starts at a multiple of {alignment} bytes")
    );
    assert_eq!(
        refusal(affine(), other.slice(..)),
        "input: its buffer lacks the usage STORAGE"
    );
    assert_eq!(
        refusal(affine(), storage.slice(..396)),
        "input: the slice has 396 bytes, the shape needs 400"
    );
    let mut large = affine();
    large.operands[0] = Operand::whole("input", 2052);
    assert_eq!(
        refusal(large, storage.slice(..)),
        "max_storage_buffer_binding_size is 2048 on this device, this shape needs 2052"
    );
    let mut missing = affine();
    missing.operands[1] = Operand::whole("outptu", 400);
    assert_eq!(
        refusal(missing, storage.slice(..)),
        "outptu: is needed and missing"
    );
}

#[test]
fn unfit_dispatches_are_errors() {
    let device = noop();
    let storage = buffer(&device, 4096, wgpu::BufferUsages::STORAGE);
    let refusal = |change: &dyn Fn(&mut Dispatch)| {
        let mut dispatch = affine();
        change(&mut dispatch);
        refusal(dispatch, storage.slice(..))
    };
    assert_eq!(
        refusal(&|dispatch| dispatch.operands.truncate(1)),
        "operands is 1, expected 2, one for each storage binding of affine"
    );
    assert_eq!(
        refusal(&|dispatch| dispatch.params.truncate(4)),
        "params is 4, expected 8 bytes, four for each field of affine"
    );
    for steps in [0, 257] {
        assert_eq!(
            refusal(&|dispatch| dispatch.steps = steps),
            format!("steps is {steps}, expected 1 to 256")
        );
    }
    assert_eq!(
        refusal(&|dispatch| dispatch.grid = [1, 65_536, 1]),
        "max_compute_workgroups_per_dimension is 65535 on this device, this shape needs 65536"
    );
    let window = |window| {
        move |dispatch: &mut Dispatch| {
            dispatch.operands[0] = Operand::Slice {
                name: "input",
                window,
            };
        }
    };
    let not_whole = "input: its window is empty or does not end with a whole word";
    #[expect(clippy::reversed_empty_ranges, reason = "the mistake under test")]
    for wrong in [0..0, 256..256, 512..256, 0..3] {
        assert_eq!(
            refusal(&|dispatch| window(wrong.clone())(dispatch)),
            not_whole
        );
    }
    assert_eq!(
        refusal(&|dispatch| window(4..404)(dispatch)),
        "input is 4, expected a window that starts at a multiple of 256"
    );
}

#[test]
fn wgsl_that_does_not_compile_is_an_error() {
    let context = Context::new(&noop());
    let refusal = |text: &'static [&'static str], storage| {
        let dispatch = Dispatch {
            kernel: Kernel {
                parts: Cow::Borrowed(text),
                storage,
                ..AFFINE
            },
            ..affine()
        };
        match context.compile(&[dispatch]).unwrap_err() {
            Error::Compile {
                kernel: "affine",
                message,
            } => message,
            error => panic!("{error:?}"),
        }
    };
    let both = AFFINE.storage;
    let message = refusal(&["fn affine() { let x: u32 = 1.5; }"], both);
    assert!(message.contains("u32"), "{message}");
    let message = refusal(&["@compute @workgroup_size(1) fn other() {}"], both);
    assert!(message.contains("affine"), "{message}");
    // a binding that the host does not know of, and one that it knows otherwise
    refusal(AFFINE_TEXT, &[Access::Read]);
    refusal(AFFINE_TEXT, &[Access::Read, Access::Read]);
    // the context is none the worse for it
    context.compile(&[affine()]).unwrap();
}

/// As an application might have it: no feature, no limit raised.
#[test]
fn the_default_device_suffices() {
    let Some(gpu) = gpu() else { return };
    let adapters = pollster::block_on(gatefold::Gpu::adapters());
    let adapter = adapters
        .iter()
        .find(|adapter| adapter.get_info() == *gpu.info())
        .unwrap();
    let descriptor = wgpu::DeviceDescriptor {
        required_limits: wgpu::Limits::default().or_worse_values_from(&adapter.limits()),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    let context = Context::new(&device);
    assert_eq!(context.capabilities().subgroup_size, None);
    let attention = Attention::new(
        &context,
        AttentionConfig {
            head_dim: 4,
            ..Default::default()
        },
    )
    .unwrap();
    // one key: the output is its value
    let usage =
        wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let [query, value, output] = [(); 3].map(|()| buffer(&device, 16, usage));
    queue.write_buffer(&value, 0, bytemuck::cast_slice(&[1f32, 2.0, 3.0, 4.0]));
    let buffers = AttentionBuffers::new(
        query.slice(..),
        value.slice(..),
        value.slice(..),
        output.slice(..),
    );
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    attention
        .record(&mut pass, AttentionShape::new(1, 1, 1, 1, 1), buffers)
        .unwrap();
    drop(pass);
    queue.submit([encoder.finish()]);
    let (sender, receiver) = std::sync::mpsc::channel();
    wgpu::util::DownloadBuffer::read_buffer(&device, &queue, &output.slice(..), move |read| {
        let _ = sender.send(read.map(|read| bytemuck::pod_collect_to_vec::<u8, f32>(&read)));
    });
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    assert_eq!(receiver.recv().unwrap().unwrap(), [1.0, 2.0, 3.0, 4.0]);
}

/// What an application pays on its CPU, without a driver: `cargo test --test host costs -- --nocapture`.
#[test]
fn costs_of_binding_and_recording_are_bounded() {
    const COUNT: u32 = 1000;
    // an encoder needs the queue to live
    let (device, _queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    let context = Context::new(&device);
    let [input, output] = [(); 2].map(|()| buffer(&device, 4096, wgpu::BufferUsages::STORAGE));
    let slices = [("input", input.slice(..)), ("output", output.slice(..))];
    context.compile(&[affine()]).unwrap();
    let each = |start: Instant| start.elapsed() / COUNT;

    let start = Instant::now();
    for _ in 0..COUNT {
        context.bind(&[affine()], &slices).unwrap();
    }
    let alone = each(start);

    let start = Instant::now();
    let bound = context
        .bind(&vec![affine(); COUNT as usize], &slices)
        .unwrap();
    let together = each(start);

    let mut encoder = device.create_command_encoder(&Default::default());
    let start = Instant::now();
    let mut pass = encoder.begin_compute_pass(&Default::default());
    bound.record(&mut pass);
    drop(pass);
    let recorded = each(start);
    let start = Instant::now();
    encoder.finish();
    let finished = each(start);
    println!(
        "per dispatch: bind {alone:?} one by one, {together:?} together; record {recorded:?}, finish {finished:?}"
    );
    assert!(alone < Duration::from_millis(5), "{alone:?}");
}
