//! What the tests of all operations share: the device, its variants, inputs, poisoned outputs.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod additive_attention;
pub mod attention;
pub mod attention_backward;
pub mod attention_options;
pub mod launches;
pub mod min_recurrent;
pub mod recurrent;
pub mod recurrent_backward;
pub mod scan;

use std::sync::OnceLock;

use gatefold::{Capabilities, Checks, Gpu};

/// The device of this test binary, or `None` where there is none and `GATEFOLD_ALLOW_NO_GPU=1` allows it.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| match pollster::block_on(Gpu::new()) {
        Ok(gpu) => {
            eprintln!("tests run on {}", gpu.describe());
            Some(gpu)
        }
        Err(error) if std::env::var("GATEFOLD_ALLOW_NO_GPU").is_ok_and(|value| value == "1") => {
            eprintln!("skipped all tests that need a device: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    });
    gpu.as_ref()
}

/// The device in the guises that have tiles or variants of their own: as it is, as a GPU, as a CPU, each
/// with and without subgroups, and at the floor of WebGPU's default limits with naga's checks on.
pub fn guises(gpu: &Gpu) -> Vec<Gpu> {
    let all = *gpu.context().capabilities();
    let floor = Capabilities {
        cpu: false,
        ..Capabilities::floor()
    };
    let mut guises = vec![gpu.with_capabilities(floor, Checks::Checked)];
    for cpu in [false, true] {
        for subgroup_size in [all.subgroup_size, None] {
            let capabilities = Capabilities {
                cpu,
                subgroup_size,
                ..all
            };
            guises.push(gpu.with_capabilities(capabilities, Checks::Trusted));
        }
    }
    guises
}

/// The guises of the device of this test binary, made once: what one test has compiled serves the others.
pub fn shared_guises() -> Option<&'static [Gpu]> {
    static GUISES: OnceLock<Vec<Gpu>> = OnceLock::new();
    let gpu = gpu()?;
    Some(GUISES.get_or_init(|| guises(gpu)))
}

/// SplitMix64 (Steele, Lea and Flood 2014): small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Standard normal, roughly, times `scale`.
    pub fn normal(&mut self, scale: f32) -> f32 {
        let sum: f32 = (0..12).map(|_| self.uniform()).sum();
        scale * (sum - 6.0)
    }

    /// `len` normal numbers with an outlier now and then, so that a softmax is neither flat nor one-hot.
    pub fn normals(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len)
            .map(|_| {
                if self.uniform() < 0.02 {
                    self.normal(3.0 * scale)
                } else {
                    self.normal(scale)
                }
            })
            .collect()
    }
}

/// Words of a known pattern behind every output, inside the slice that is bound.
const CANARIES: usize = 64;
const CANARY: u32 = 0x7fc0_ca9a;

/// An output buffer full of NaN with canaries behind it.
pub struct Output {
    pub buffer: wgpu::Buffer,
    len: usize,
}

impl Output {
    pub fn new(gpu: &Gpu, len: usize) -> Self {
        let buffer = gpu.zeros("output", 4 * (len + CANARIES) as u64).unwrap();
        let output = Self { buffer, len };
        output.poison(gpu);
        output
    }

    pub fn slice(&self) -> wgpu::BufferSlice<'_> {
        self.buffer.slice(..)
    }

    pub fn poison(&self, gpu: &Gpu) {
        let mut words = vec![f32::NAN.to_bits(); self.len];
        words.resize(self.len + CANARIES, CANARY);
        gpu.queue()
            .write_buffer(&self.buffer, 0, bytemuck::cast_slice(&words));
    }

    /// The values, after a look at the canaries.
    pub fn read(&self, gpu: &Gpu) -> Vec<f32> {
        let words: Vec<u32> = gpu.download(&self.buffer).unwrap();
        let stray = words[self.len..].iter().position(|&word| word != CANARY);
        assert_eq!(stray, None, "a kernel wrote behind its output");
        words[..self.len]
            .iter()
            .map(|&word| f32::from_bits(word))
            .collect()
    }
}

/// Bit for bit.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
