//! The program as its users meet it: files, flags, standard output, exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod additive;
mod attention;
mod heatmap;
mod measure;
mod minimal;
mod recurrent;
mod recurrent_gradients;
mod refused;
mod run;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, SafeTensors, View};
use tempfile::TempDir;

/// Runs the program, through the runner of `GATEFOLD_RUNNER` where there is one.
fn gatefold(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_gatefold");
    let runner = std::env::var("GATEFOLD_RUNNER").unwrap_or_default();
    let mut words: Vec<&str> = runner.split_whitespace().collect();
    words.push(program);
    Command::new(words[0])
        .args(&words[1..])
        .args(args)
        .output()
        .unwrap()
}

/// Whether the test may go on: `false` where there is no adapter and `GATEFOLD_ALLOW_NO_GPU=1` allows it.
fn has_adapter() -> bool {
    let allowed = std::env::var("GATEFOLD_ALLOW_NO_GPU").is_ok_and(|value| value == "1");
    if allowed && gatefold(&["info"]).status.code() == Some(3) {
        eprintln!("skipped: no adapter");
        return false;
    }
    true
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

type Tensors = BTreeMap<String, Tensor>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: safetensors::tensor::TensorView<'_>| Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, tensor(view)))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype {
        Dtype::F32 => {
            let (values, _) = tensor.bytes.as_chunks();
            values
                .iter()
                .map(|value| f32::from_le_bytes(*value).into())
                .collect()
        }
        Dtype::F64 => {
            let (values, _) = tensor.bytes.as_chunks();
            values
                .iter()
                .map(|value| f64::from_le_bytes(*value))
                .collect()
        }
        other => panic!("{other:?}"),
    }
}

fn tensor(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values = (0..len).flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes());
    Tensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: values.collect(),
    }
}

/// Of `tests/golden`; the name begins with the operation's.
fn golden(case: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
    Path::new(folder).join(format!("{case}.safetensors"))
}

/// The results among the tensors of a golden file are f64.
fn split(case: &str) -> (Tensors, Tensors) {
    let tensors = read(&golden(case)).into_iter();
    tensors.partition(|(_, tensor)| tensor.dtype != Dtype::F64)
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `run OP` on `tensors`; what it printed, and the results if there are any.
    fn run(&self, op: &str, tensors: &Tensors, options: &[&str]) -> (Output, Option<Tensors>) {
        let (input, output) = (self.path("in.safetensors"), self.path("out.safetensors"));
        write(&input, tensors);
        let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
        let files = ["run", op, "--input", input, "--output", output];
        let done = gatefold(&[&files, options].concat());
        let results = self.path("out.safetensors");
        (done, results.exists().then(|| read(&results)))
    }
}
