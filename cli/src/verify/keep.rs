//! A folder from which a failure can be reproduced.

use std::path::{Path, PathBuf};

use gatefold::Plan;
use gatefold::kernel::{Constant, Dispatch, Operand};
use serde_json::{Value, json};

use super::Outcome;
use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::ops::Problem;
use crate::report;
use crate::tensors::{Destination, Tensors};

/// Everything there is to say about a case that failed.
pub struct Failure<'a> {
    pub outcome: &'a Outcome,
    pub adapter: &'a Adapter,
    pub seed: u64,
    pub problem: &'a dyn Problem,
    pub plan: Option<Plan>,
    pub inputs: &'a Tensors,
    pub got: Option<&'a Tensors>,
}

impl Failure<'_> {
    /// Writes the folder and says where it is.
    pub fn keep(&self, folder: &Path) -> Result<PathBuf> {
        let name = format!("{} {}", self.outcome.name, self.adapter.describe());
        let folder = folder.join(file_name(&name));
        let failed = |error| Error::failed(format_args!("{}: {error}", folder.display()));
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text)
                .map_err(|error| Error::failed(format_args!("{}: {error}", path.display())))
        };
        let mut kernels: Vec<String> = Vec::new();
        for dispatch in self.plan.iter().flat_map(|plan| &plan.dispatches) {
            let source = dispatch.kernel.source(&dispatch.constants, false);
            if kernels.contains(&source) {
                continue;
            }
            // a plan of several kernels: kernel.wgsl, kernel-2.wgsl, ...
            let name = match kernels.len() {
                0 => "kernel.wgsl".to_owned(),
                number => format!("kernel-{}.wgsl", number + 1),
            };
            write(&name, source.clone())?;
            kernels.push(source);
        }
        write("plan.json", report::json(&self.plan_json())?)?;
        let save =
            |name: &str, tensors: &Tensors| Destination::create(&folder.join(name))?.write(tensors);
        save("inputs.safetensors", self.inputs)?;
        save("expected.safetensors", &self.problem.truth(self.inputs)?)?;
        if let Some(got) = self.got {
            save("got.safetensors", got)?;
        }
        Ok(folder)
    }

    fn plan_json(&self) -> Value {
        let dispatches = self.plan.iter().flat_map(|plan| &plan.dispatches);
        let mut command = format!(
            "gatefold run {} --input inputs.safetensors --output again.safetensors",
            self.problem.op()
        );
        let variant = self.plan.as_ref().map(|plan| plan.variant.to_string());
        let forced = variant.iter().map(|variant| format!("--variant={variant}"));
        for option in self.problem.options().into_iter().chain(forced) {
            command += &format!(" {option}");
        }
        json!({
            "schema": 1,
            "case": self.outcome.name,
            "problem": self.outcome.result.as_ref().err(),
            "command": command,
            "version": env!("CARGO_PKG_VERSION"),
            "adapter": self.adapter,
            "seed": self.seed,
            "shape": self.problem.shape().into_iter().map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>(),
            "variant": variant,
            "tile": self.outcome.tile,
            "dispatches": dispatches.map(dispatch_json).collect::<Vec<_>>(),
        })
    }
}

fn dispatch_json(dispatch: &Dispatch) -> Value {
    let constants = dispatch.constants.iter().map(|(name, value)| {
        let value = match value {
            Constant::U32(value) => json!(value),
            Constant::Bool(value) => json!(value),
        };
        ((*name).to_owned(), value)
    });
    let (words, _) = dispatch.params.as_chunks::<4>();
    let params = dispatch
        .kernel
        .params
        .iter()
        .zip(words)
        .map(|((name, kind), word)| {
            let value = match *kind {
                "f32" => json!(f32::from_le_bytes(*word)),
                "i32" => json!(i32::from_le_bytes(*word)),
                _ => json!(u32::from_le_bytes(*word)),
            };
            ((*name).to_owned(), value)
        });
    let operands = dispatch.operands.iter().map(|operand| match operand {
        Operand::Slice { name, window } => {
            json!({"tensor": name, "bytes": [window.start, window.end]})
        }
        Operand::Unused => Value::Null,
    });
    json!({
        "kernel": dispatch.kernel.name,
        "constants": constants.collect::<serde_json::Map<_, _>>(),
        "params": params.collect::<serde_json::Map<_, _>>(),
        "operands": operands.collect::<Vec<_>>(),
        "grid": dispatch.grid,
        "steps": dispatch.steps,
    })
}

/// Letters, digits and dashes, which every file system takes.
fn file_name(text: &str) -> String {
    let plain = text
        .to_lowercase()
        .replace(|c: char| !c.is_ascii_alphanumeric(), " ");
    let words: Vec<_> = plain.split_whitespace().collect();
    let mut name = words.join("-");
    name.truncate(120);
    name
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gatefold::{Capabilities, wgpu};

    use super::*;
    use crate::ops;
    use crate::tensors;

    #[test]
    fn a_failure_is_kept_with_kernel_plan_and_tensors() {
        let cases = ops::cases();
        let case = cases.iter().find(|case| case.name == "offset_negative");
        let problem = &case.unwrap().problem;
        let plan = problem.plan(&Capabilities::floor(), None).unwrap();
        let inputs = problem.random(1);
        let got = problem.truth(&inputs).unwrap();
        let outcome = Outcome {
            adapter: "none".into(),
            name: "attention/portable/offset_negative".into(),
            shape: String::new(),
            tile: plan.describe.clone(),
            result: Err("wrong".into()),
            time: Duration::ZERO,
        };
        let adapter = Adapter {
            name: "none".into(),
            backend: wgpu::Backend::Noop.to_string(),
            driver: String::new(),
            driver_info: String::new(),
            device_type: "other".into(),
            software: false,
        };
        let failure = Failure {
            outcome: &outcome,
            adapter: &adapter,
            seed: 1,
            problem: problem.as_ref(),
            plan: Some(plan),
            inputs: &inputs,
            got: Some(&got),
        };
        let parent = tempfile::tempdir().unwrap();
        let folder = failure.keep(parent.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(read("kernel.wgsl").contains("fn attention("));
        let plan: Value = serde_json::from_str(&read("plan.json")).unwrap();
        assert_eq!(plan["dispatches"][0]["params"]["offset"], -9);
        let command = plan["command"].as_str().unwrap();
        assert!(
            command.ends_with("--causal=-9 --variant=portable"),
            "{command}"
        );
        assert_eq!(
            tensors::read(&folder.join("inputs.safetensors")).unwrap(),
            inputs
        );
        assert_eq!(
            tensors::read(&folder.join("expected.safetensors")).unwrap(),
            got
        );
    }

    #[test]
    fn file_names_are_plain() {
        assert_eq!(file_name("a/b_c (D, 1.2)"), "a-b-c-d-1-2");
    }
}
