//! Linear recurrence: `h_t = a_t * h_(t-1) + b_t`.

use clap::Args;
use gatefold::reference::compare::{Difference, Tolerance, compare_with};
use gatefold::reference::scan::{self as reference, Optional};
use gatefold::reference::tracked::{Tracked, magnitudes};
use gatefold::reference::{Real, convert};
use gatefold::{
    Capabilities, Gpu, Plan, Scan as Operation, ScanBackwardBuffers, ScanBackwardGiven,
    ScanBuffers, ScanConfig, ScanGiven, ScanShape, Variant,
};
use serde_json::{Value, json};

use super::launch::Output;
use super::random::Random;
use super::recurrent::call::{axes, expect, lengths, only};
use super::{Case, Launch, Problem, slice, upload};
use crate::args::list::{List, product};
use crate::args::{BenchCommon, RunCommon};
use crate::error::{Error, Result};
use crate::tensors::{Tensor, Tensors, floats, mismatch};

#[derive(Debug, Args)]
pub struct RunOptions {
    /// Later times come first
    #[arg(long)]
    pub reverse: bool,
    /// Force the steps of a chunk
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk_len: Option<u32>,
}

#[derive(Debug, Args)]
pub struct BenchOptions {
    /// [default: 1]
    #[arg(long)]
    pub batch: Vec<List>,
    /// [default: 4096]
    #[arg(long)]
    pub seq_len: Vec<List>,
    /// Numbers of a state [default: 256]
    #[arg(long)]
    pub width: Vec<List>,
    #[command(flatten)]
    pub how: RunOptions,
}

#[derive(Debug, Clone, Copy)]
struct Scan {
    shape: ScanShape,
    config: ScanConfig,
    given: ScanGiven,
    grad: Option<Grad>,
}

/// Which gradients there are.
#[derive(Debug, Clone, Copy)]
struct Grad {
    output: bool,
    h_n: bool,
}

pub fn from_tensors(
    common: &RunCommon,
    options: &RunOptions,
    tensors: &Tensors,
) -> Result<Box<dyn Problem>> {
    const KNOWN: [&str; 6] = ["a", "b", "h_0", "lengths", "grad_output", "grad_h_n"];
    only(
        tensors,
        "scan",
        |name| KNOWN.contains(&name),
        &KNOWN.join(", "),
    )?;
    let [seq_len, batch, width] = axes(tensors, "a", "[seq_len, batch, width]")?;
    if width == 0 {
        return Err(mismatch(tensors, "a", "width of at least 1"));
    }
    let all = [seq_len, batch, width];
    expect(tensors, "b", &all, "[seq_len, batch, width]")?;
    lengths(tensors, "lengths", batch, seq_len)?;
    let has = |name: &str| tensors.contains_key(name);
    for (name, shape, wanted) in [
        ("h_0", &all[1..], "[batch, width]"),
        ("grad_h_n", &all[1..], "[batch, width]"),
        ("grad_output", &all[..], "[seq_len, batch, width]"),
    ] {
        if has(name) {
            expect(tensors, name, shape, wanted)?;
        }
    }
    let problem = Scan {
        shape: ScanShape {
            seq_len,
            batch,
            width,
        },
        config: ScanConfig {
            reverse: options.reverse,
            chunk_len: options.chunk_len,
        },
        given: ScanGiven {
            h_0: has("h_0"),
            lengths: has("lengths"),
            h_n: true,
        },
        grad: common.grad.then_some(Grad {
            output: has("grad_output"),
            h_n: has("grad_h_n"),
        }),
    };
    one_gradient(common.grad, tensors)?;
    possible(problem.plan(&Capabilities::floor(), None))?;
    Ok(Box::new(problem))
}

/// With `--grad`, something to start from.
pub fn one_gradient(grad: bool, tensors: &Tensors) -> Result<()> {
    let has = |name: &str| tensors.contains_key(name);
    if grad && !has("grad_output") && !has("grad_h_n") {
        return Err(Error::usage("--grad needs grad_output or grad_h_n"));
    }
    Ok(())
}

/// A shape that no device can run is a mistake of the user's: known before a device is opened.
pub fn possible(plan: Result<Plan, gatefold::Error>) -> Result<()> {
    match plan {
        Err(error @ gatefold::Error::Shape { .. }) => Err(error.into()),
        _ => Ok(()),
    }
}

pub fn grid(common: &BenchCommon, options: &BenchOptions) -> Result<Vec<Box<dyn Problem>>> {
    let grad = common.grad;
    common.only_f32()?;
    let axes = super::grid_axes(&[
        ("--batch", &options.batch, 1),
        ("--seq-len", &options.seq_len, 4096),
        ("--width", &options.width, 256),
    ])?;
    let row = |row: Vec<u32>| {
        let mut problem = problem([row[0], row[1], row[2]]);
        problem.config = ScanConfig {
            reverse: options.how.reverse,
            chunk_len: options.how.chunk_len,
        };
        problem.grad = grad.then_some(Grad {
            output: true,
            h_n: false,
        });
        possible(problem.plan(&Capabilities::floor(), None))?;
        Ok(Box::new(problem) as Box<dyn Problem>)
    };
    product(&axes).into_iter().map(row).collect()
}

/// Of batch, seq_len and width; forward, from zeros.
fn problem([batch, seq_len, width]: [u32; 3]) -> Scan {
    Scan {
        shape: ScanShape {
            seq_len,
            batch,
            width,
        },
        config: ScanConfig::default(),
        given: ScanGiven {
            h_n: true,
            ..Default::default()
        },
        grad: None,
    }
}

pub fn showcase() -> Vec<Box<dyn Problem>> {
    let sizes = [[1, 4096, 256], [1, 65_536, 16]];
    let boxed = |sizes| Box::new(problem(sizes)) as Box<dyn Problem>;
    sizes.into_iter().map(boxed).collect()
}

/// What `verify` runs.
pub fn cases() -> Vec<Case> {
    let all = Grad {
        output: true,
        h_n: true,
    };
    let mut cases = Vec::new();
    for (name, sizes, chunk_len, grad) in [
        ("plain", [3, 37, 13], None, None),
        ("chunks", [3, 37, 13], Some(8), None),
        ("wide", [2, 40, 300], None, None),
        ("long", [1, 3000, 3], None, None),
        ("grad", [3, 37, 13], None, Some(all)),
        ("grad_chunks", [3, 37, 13], Some(5), Some(all)),
        ("grad_long", [1, 3000, 3], None, Some(all)),
    ] {
        for reverse in [false, true] {
            let mut problem = problem(sizes);
            problem.config = ScanConfig { reverse, chunk_len };
            problem.grad = grad;
            problem.given.h_0 = true;
            problem.given.lengths = sizes[0] > 1;
            let direction = if reverse { "_reverse" } else { "" };
            cases.push(Case {
                name: format!("{name}{direction}"),
                problem: Box::new(problem),
                slow_to_compile: false,
            });
        }
    }
    cases
}

impl Scan {
    fn dims(&self) -> [usize; 3] {
        let ScanShape {
            seq_len,
            batch,
            width,
        } = self.shape;
        [seq_len, batch, width].map(|len| len as usize)
    }

    /// The results' names and shapes.
    fn results(&self) -> Vec<(&'static str, Vec<usize>)> {
        let all = self.dims();
        let mut results = vec![("output", all.to_vec()), ("h_n", all[1..].to_vec())];
        if self.grad.is_some() {
            results.extend([("grad_a", all.to_vec()), ("grad_b", all.to_vec())]);
            if self.given.h_0 {
                results.push(("grad_h_0", all[1..].to_vec()));
            }
        }
        results
    }

    /// The values of [`results`](Self::results).
    fn compute<R: Real>(&self, inputs: &Tensors) -> Result<Vec<Vec<R>>> {
        let take = |name| -> Result<Vec<R>> { Ok(convert(floats(inputs, name)?)) };
        let (a, b) = (take("a")?, take("b")?);
        let h_0 = self.given.h_0.then(|| take("h_0")).transpose()?;
        let ScanShape { seq_len, batch, .. } = self.shape;
        let lengths = lengths(inputs, "lengths", batch, seq_len)?;
        let optional = Optional {
            h_0: h_0.as_deref(),
            lengths: lengths.as_deref(),
        };
        let (shape, reverse) = (self.shape, self.config.reverse);
        let forward = reference::scan(shape, reverse, &a, &b, optional);
        let mut results = vec![forward.output, forward.h_n];
        if let Some(grad) = self.grad {
            let or_zeros = |name, given, len| match given {
                true => take(name),
                false => Ok(vec![R::ZERO; len]),
            };
            let grad_output = or_zeros("grad_output", grad.output, a.len())?;
            let grad_h_n = or_zeros("grad_h_n", grad.h_n, results[1].len())?;
            let backward =
                reference::scan_backward(shape, reverse, &a, &b, optional, &grad_output, &grad_h_n);
            results.extend([backward.grad_a, backward.grad_b]);
            if self.given.h_0 {
                results.push(backward.grad_h_0);
            }
        }
        Ok(results)
    }

    fn given_backward(&self, grad: Grad) -> ScanBackwardGiven {
        ScanBackwardGiven {
            h_0: self.given.h_0,
            lengths: self.given.lengths,
            grad_output: grad.output,
            grad_h_n: grad.h_n,
            grad_h_0: self.given.h_0,
        }
    }
}

impl Problem for Scan {
    fn op(&self) -> &'static str {
        "scan"
    }

    fn shape(&self) -> Vec<(&'static str, Value)> {
        let mut words = vec![
            ("batch", json!(self.shape.batch)),
            ("seq_len", json!(self.shape.seq_len)),
            ("width", json!(self.shape.width)),
        ];
        if self.config.reverse {
            words.push(("reverse", json!(true)));
        }
        if self.grad.is_some() {
            words.push(("grad", json!(true)));
        }
        words
    }

    fn options(&self) -> Vec<String> {
        let reverse = self.config.reverse.then(|| "--reverse".to_owned());
        let chunk = self
            .config
            .chunk_len
            .map(|len| format!("--chunk-len={len}"));
        let grad = self.grad.map(|_| "--grad".to_owned());
        [reverse, chunk, grad].into_iter().flatten().collect()
    }

    fn steps(&self) -> Option<u64> {
        Some(self.shape.seq_len.into())
    }

    fn variants(&self, _: &Capabilities) -> Vec<Variant> {
        vec![Variant::Portable]
    }

    fn plan(
        &self,
        capabilities: &Capabilities,
        variant: Option<Variant>,
    ) -> Result<Plan, gatefold::Error> {
        if let Some(variant) = variant.filter(|&variant| variant != Variant::Portable) {
            let feature = format!("a {variant} variant of a scan").into();
            return Err(gatefold::Error::Feature { feature });
        }
        let plan = self.config.plan(capabilities, self.shape, self.given)?;
        Ok(match self.grad {
            Some(grad) => {
                let given = self.given_backward(grad);
                plan.then(self.config.plan_backward(capabilities, self.shape, given)?)
            }
            None => plan,
        })
    }

    fn random(&self, seed: u64) -> Tensors {
        let mut random = Random::new(seed);
        let all = self.dims();
        let mut tensors = Tensors::new();
        let mut add = |name: &str, shape: &[usize], mean, deviation| {
            let values = random.normals(shape.iter().product(), mean, deviation);
            tensors.insert(name.to_owned(), Tensor::f32(shape, values));
        };
        add("b", &all, 0.0, 0.7);
        add("a", &all, 0.8, 0.15);
        if self.given.h_0 {
            add("h_0", &all[1..], 0.0, 1.0);
        }
        if let Some(grad) = self.grad {
            if grad.output {
                add("grad_output", &all, 0.0, 0.5);
            }
            if grad.h_n {
                add("grad_h_n", &all[1..], 0.0, 1.0);
            }
        }
        if self.given.lengths {
            let lengths = super::some_lengths(all[1], all[0]);
            tensors.insert("lengths".to_owned(), lengths);
        }
        tensors
    }

    fn launch(&self, gpu: &Gpu, variant: Option<Variant>, inputs: &Tensors) -> Result<Launch> {
        let plan = self.plan(gpu.context().capabilities(), variant)?;
        let op = Operation::new(gpu.context(), self.config)?;
        let tensor = |name, given: bool| -> Result<_> {
            let values = given.then(|| floats(inputs, name)).transpose()?;
            upload(gpu, name, values)
        };
        let a = gpu.upload("a", floats(inputs, "a")?)?;
        let b = gpu.upload("b", floats(inputs, "b")?)?;
        let h_0 = tensor("h_0", self.given.h_0)?;
        let ScanShape { seq_len, batch, .. } = self.shape;
        let lengths = lengths(inputs, "lengths", batch, seq_len)?;
        let lengths = upload(gpu, "lengths", lengths.as_deref())?;
        let outputs = self.results().into_iter();
        let outputs: Vec<Output> = outputs
            .map(|(name, shape)| Output::new(gpu, name, &shape))
            .collect::<Result<_>>()?;
        let poison = vec![f32::NAN; plan.scratch_size as usize / 4];
        let scratch = gpu.upload("scratch", &poison)?;
        let buffers = ScanBuffers {
            h_0: slice(&h_0),
            lengths: slice(&lengths),
            h_n: Some(outputs[1].slice()),
            ..ScanBuffers::new(
                a.slice(..),
                b.slice(..),
                outputs[0].slice(),
                scratch.slice(..),
            )
        };
        let mut bounds = vec![op.bind(self.shape, buffers)?];
        if let Some(grad) = self.grad {
            let grad_output = tensor("grad_output", grad.output)?;
            let grad_h_n = tensor("grad_h_n", grad.h_n)?;
            let buffers = ScanBackwardBuffers {
                h_0: slice(&h_0),
                lengths: slice(&lengths),
                grad_output: slice(&grad_output),
                grad_h_n: slice(&grad_h_n),
                grad_h_0: outputs.get(4).map(Output::slice),
                ..ScanBackwardBuffers::new(
                    buffers.a,
                    buffers.output,
                    outputs[2].slice(),
                    outputs[3].slice(),
                    scratch.slice(..),
                )
            };
            bounds.push(op.bind_backward(self.shape, buffers)?);
        }
        Ok(Launch::new(plan, bounds, outputs))
    }

    fn truth(&self, inputs: &Tensors) -> Result<Tensors> {
        let values = self.compute::<f64>(inputs)?;
        let results = self.results().into_iter().zip(values);
        let tensor = |((name, shape), values): ((&str, Vec<usize>), _)| {
            (name.to_owned(), Tensor::f64(&shape, values))
        };
        Ok(results.map(tensor).collect())
    }

    fn check(
        &self,
        _: Variant,
        inputs: &Tensors,
        got: &Tensors,
    ) -> Result<Result<f64, Box<Difference>>> {
        let truth = self.compute::<f64>(inputs)?;
        let tracked = self.compute::<Tracked>(inputs)?;
        let yardstick = self.compute::<f32>(inputs)?;
        let mut worst: f64 = 0.0;
        for (i, (name, shape)) in self.results().into_iter().enumerate() {
            let tolerance = match i {
                0 | 1 => Tolerance::RECURRENT,
                _ => Tolerance::GRADIENT,
            };
            let agreement = compare_with(
                name,
                &shape,
                floats(got, name)?,
                &truth[i],
                &magnitudes(&tracked[i]),
                &yardstick[i],
                tolerance,
            );
            match agreement {
                Ok(agreement) => worst = worst.max(agreement.error),
                Err(difference) => return Ok(Err(Box::new(difference))),
            }
        }
        Ok(Ok(worst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_gradient_is_noticed() {
        let mut problem = problem([2, 9, 3]);
        problem.grad = Some(Grad {
            output: true,
            h_n: true,
        });
        problem.given.h_0 = true;
        let inputs = problem.random(1);
        let mut got = Tensors::new();
        for ((name, shape), values) in problem
            .results()
            .into_iter()
            .zip(problem.compute::<f32>(&inputs).unwrap())
        {
            got.insert(name.to_owned(), Tensor::f32(&shape, values));
        }
        assert!(
            problem
                .check(Variant::Portable, &inputs, &got)
                .unwrap()
                .is_ok()
        );
        let swapped = got["grad_a"].clone();
        got.insert("grad_b".to_owned(), swapped);
        assert!(
            problem
                .check(Variant::Portable, &inputs, &got)
                .unwrap()
                .is_err()
        );
    }
}
