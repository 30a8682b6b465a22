//! Attention inside a program that has a wgpu device of its own: `cargo run --example embed`
//!
//! Tokens attend to each other, then to the tokens of an encoder. The first output is the second
//! query and never leaves the device: one submission, one read-back.

use gatefold::reference::attention::{Problem, attention};
use gatefold::{
    Attention, AttentionBuffers, AttentionConfig, AttentionShape, Causal, Context, wgpu,
};
use wgpu::util::{BufferInitDescriptor, DeviceExt, DownloadBuffer};

const HEADS: u32 = 4;
const TOKENS: u32 = 50;
const HEAD_DIM: u32 = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // what the application has anyway: a device, a queue, buffers
    let instance = wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        // both optional: everything works without, some of it slower
        required_features: Context::wanted_features(&adapter),
        required_limits: Context::wanted_limits(&adapter),
        ..Default::default()
    }))?;
    let upload = |contents: &Vec<f32>| {
        device.create_buffer_init(&BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(contents),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    };
    // query, key, value, then the encoder's key and value: all [batch, heads, tokens, head_dim]
    let inputs = [1, 2, 3, 4, 5].map(waves);
    let [q, k, v, ek, ev] = inputs.each_ref().map(upload);
    let [middle, output] = [(); 2].map(|()| upload(&vec![0.0; inputs[0].len()]));

    // once: compile
    let context = Context::new(&device);
    let config = AttentionConfig {
        head_dim: HEAD_DIM,
        ..Default::default()
    };
    let causal = Causal::TopLeft;
    let self_attention = Attention::new(&context, AttentionConfig { causal, ..config })?;
    let cross_attention = Attention::new(&context, config)?;

    // once per set of buffers: bind
    let shape = AttentionShape::new(1, HEADS, HEADS, TOKENS, TOKENS);
    let [q, k, v, ek, ev] = [&q, &k, &v, &ek, &ev].map(|buffer| buffer.slice(..));
    let (middle, result) = (middle.slice(..), output.slice(..));
    let first = self_attention.bind(shape, AttentionBuffers::new(q, k, v, middle))?;
    let second = cross_attention.bind(shape, AttentionBuffers::new(middle, ek, ev, result))?;

    // every frame: record into the application's own encoder, next to whatever else it does
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    first.record(&mut pass);
    second.record(&mut pass);
    drop(pass);
    queue.submit([encoder.finish()]);

    let (sender, receiver) = std::sync::mpsc::channel();
    DownloadBuffer::read_buffer(&device, &queue, &result, move |read| {
        let _ = sender.send(read.map(|bytes| bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)));
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let got = receiver.recv()??;

    // the same on the CPU, in f64
    let [heads, tokens, dim] = [HEADS, TOKENS, HEAD_DIM].map(|len| len as usize);
    let problem = |causal| Problem {
        causal,
        ..Problem::plain(1, heads, heads, tokens, tokens, dim, dim)
    };
    let [q, k, v, ek, ev] = inputs.map(|input| gatefold::reference::convert::<f64>(&input));
    let middle = attention(&problem(causal), &q, &k, &v).output;
    let want = attention(&problem(Causal::No), &middle, &ek, &ev).output;
    let errors = got
        .iter()
        .zip(&want)
        .map(|(&got, want)| (f64::from(got) - want).abs());
    let error = errors.fold(0.0, f64::max);
    println!("{:.4?}... error {error:.1e}", &got[..4]);
    assert!(error < 1e-5, "the kernels and the reference differ");
    Ok(())
}

/// Numbers between -2 and 2 that differ from token to token and from head to head.
fn waves(seed: u32) -> Vec<f32> {
    let wave = |i: u32| 2.0 * (i as f32 * (0.37 + 0.11 * seed as f32)).sin();
    (0..HEADS * TOKENS * HEAD_DIM).map(wave).collect()
}
