//! What all contestants have in common: the tokens of a real text and where their results go.

use std::ops::Range;
use std::path::Path;

use gatefold::reference::{Real, convert};
use gatefold::{Bound, Gpu, wgpu};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::options::Setup;
use crate::error::{Error, Result};
use crate::ops::Output;
use crate::tensors::Data;

const BUILT_IN: &[u8] = include_bytes!("../../assets/us-constitution.txt");

/// The bytes that are the tokens.
#[derive(Debug, Clone)]
pub struct Text {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Text {
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            return Ok(Self {
                name: "us-constitution.txt".into(),
                bytes: BUILT_IN.to_vec(),
            });
        };
        let shown = path.display();
        let bytes = std::fs::read(path)
            .map_err(|error| Error::usage(format_args!("--text {shown}: {error}")))?;
        if bytes.is_empty() {
            return Err(Error::usage(format_args!("--text {shown}: it is empty")));
        }
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            bytes,
        })
    }
}

/// The tokens on the host and on the device.
pub struct Course {
    pub gpu: Gpu,
    pub width: u32,
    pub heads: u32,
    pub batch: u32,
    pub projections: bool,
    pub longest: u32,
    /// `[longest, batch, width]`: a shorter race reads the beginning of it.
    pub input: wgpu::Buffer,
    /// Like `input`, as far as there is training: what arrives at the outputs in a backward pass.
    pub grad_output: wgpu::Buffer,
    tokens: Vec<f32>,
    grads: Vec<f32>,
}

impl Course {
    /// Sequence `i` of the batch reads `longest` bytes from byte `i * longest` on, and from the start again
    /// behind the end of the text.
    pub fn new(
        gpu: Gpu,
        setup: &Setup,
        batch: u32,
        text: &Text,
        projections: bool,
    ) -> Result<Self> {
        let width = setup.width as usize;
        let (rows, longest) = (batch as usize, setup.longest() as usize);
        // unit variance, as an embedding is initialised
        let table = Random::new("embedding").uniform(256 * width, 3.0_f32.sqrt());
        let mut tokens = Vec::with_capacity(longest * rows * width);
        for time in 0..longest {
            for sequence in 0..rows {
                let byte = text.bytes[(sequence * longest + time) % text.bytes.len()];
                tokens.extend(&table[usize::from(byte) * width..][..width]);
            }
        }
        let input = gpu.upload("tokens", &tokens)?;
        let trained = setup.training.last().copied().unwrap_or_default() as usize;
        let grads = Random::new("gradients").uniform(trained * rows * width, 1.0);
        let grad_output = gpu.upload("gradients", &grads)?;
        Ok(Self {
            gpu,
            width: setup.width,
            heads: setup.heads,
            batch,
            projections,
            longest: setup.longest(),
            input,
            grad_output,
            tokens,
            grads,
        })
    }

    /// Rows of `width` numbers that hold `steps` of all sequences.
    pub fn rows(&self, steps: u32) -> u32 {
        steps * self.batch
    }

    /// Bytes of a tensor of `steps` of all sequences, `per_token` f32 each.
    pub fn size(&self, steps: u32, per_token: u32) -> u64 {
        4 * u64::from(self.rows(steps)) * u64::from(per_token)
    }

    /// A tensor `[seq_len, batch, width]` for results.
    pub fn output(&self, seq_len: u32) -> Result<Output> {
        let shape = [seq_len, self.batch, self.width].map(|len| len as usize);
        Output::new(&self.gpu, "output", &shape)
    }

    /// The sequences that are compared with the reference: the first and the last.
    pub fn judged(&self) -> Vec<usize> {
        let last = self.batch as usize - 1;
        if last == 0 { vec![0] } else { vec![0, last] }
    }

    /// The vectors of one sequence.
    pub fn tokens<R: Real>(&self, sequence: usize, steps: Range<usize>) -> Vec<R> {
        convert(&self.pick(&self.tokens, sequence, steps))
    }

    /// The gradients that arrive at the outputs of one sequence.
    pub fn gradients<R: Real>(&self, sequence: usize, steps: Range<usize>) -> Vec<R> {
        convert(&self.pick(&self.grads, sequence, steps))
    }

    /// `steps` of one sequence of a tensor `[seq_len, batch, width]`.
    pub fn pick(&self, tensor: &[f32], sequence: usize, steps: Range<usize>) -> Vec<f32> {
        let width = self.width as usize;
        steps
            .flat_map(|step| {
                let row = step * self.batch as usize + sequence;
                &tensor[row * width..][..width]
            })
            .copied()
            .collect()
    }
}

/// The same numbers in every race.
pub struct Random(StdRng);

impl Random {
    pub fn new(name: &str) -> Self {
        let seed = name.bytes().fold(0, |seed: u64, byte| {
            seed.wrapping_mul(257).wrapping_add(byte.into())
        });
        Self(StdRng::seed_from_u64(seed))
    }

    /// In `-bound..bound`.
    pub fn uniform(&mut self, len: usize, bound: f32) -> Vec<f32> {
        (0..len)
            .map(|_| bound * (2.0 * self.0.random::<f32>() - 1.0))
            .collect()
    }
}

/// A contestant at one length, bound and ready.
pub struct Entry {
    pub facts: Facts,
    pub output: Output,
    /// Recorded once, untimed: the projections, where they stay out of the race.
    pub before: Vec<Bound>,
    /// What is timed.
    pub timed: Vec<Bound>,
    /// Whether `timed` by itself makes the whole output again.
    pub timed_is_whole: bool,
}

/// What a report says of an entry.
pub struct Facts {
    pub variant: String,
    pub tier: Option<String>,
    pub kernel: String,
    pub flops: f64,
    pub bytes: f64,
    pub memory_bytes: u64,
}

impl Entry {
    /// All of it is timed.
    pub fn whole(facts: Facts, output: Output, timed: Vec<Bound>) -> Self {
        Self {
            facts,
            output,
            before: Vec::new(),
            timed,
            timed_is_whole: true,
        }
    }

    /// The output of what is timed, or, where that is a part only, of the whole.
    pub fn run(&self, gpu: &Gpu) -> Result<Vec<f32>> {
        self.output.poison(gpu);
        record(gpu, &self.before)?;
        if self.timed_is_whole {
            self.output.poison(gpu);
            record(gpu, &self.timed)?;
        }
        match self.output.read(gpu)?.data {
            Data::F32(values) => Ok(values),
            _ => Err(Error::failed("the output is not f32")),
        }
    }

    pub fn num_dispatches(&self) -> u32 {
        self.timed.iter().map(Bound::num_dispatches).sum()
    }
}

fn record(gpu: &Gpu, bounds: &[Bound]) -> Result<()> {
    Ok(gpu.run(|pass| {
        bounds.iter().for_each(|bound| bound.record(pass));
        Ok(())
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_must_be_there_and_hold_something() {
        assert!(Text::load(None).unwrap().bytes.len() > 45_000);
        assert!(Text::load(Some(Path::new("no such file"))).is_err());
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(Text::load(Some(empty.path())).is_err());
    }

    #[test]
    fn random_numbers_are_the_same_every_time_and_differ_by_name() {
        let draw = |name| Random::new(name).uniform(100, 0.5);
        assert_eq!(draw("lstm"), draw("lstm"));
        assert_ne!(draw("lstm"), draw("gru"));
        assert!(draw("lstm").iter().all(|x| x.abs() <= 0.5));
    }
}
