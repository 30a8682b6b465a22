//! `gatefold run`: one operation on the user's own tensors.

use std::process::ExitCode;

use crate::error::Result;
use crate::tensors::{Data, Destination, Tensors};
use crate::{adapter, args, tensors};

/// Everything that can be wrong with the input is found before a device is opened.
pub fn run(args: args::Run) -> Result<ExitCode> {
    let common = args.op.common();
    let inputs = tensors::read(&common.input)?;
    let problem = args.op.problem(&inputs)?;
    let destination = Destination::create(&common.output)?;
    let outputs = if common.reference {
        rounded(problem.truth(&inputs)?)
    } else {
        let gpu = adapter::open(&common.device)?;
        let launch = problem.launch(&gpu, common.variant, &inputs)?;
        adapter::announce(&gpu);
        launch.run(&gpu)?
    };
    destination.write(&outputs)?;
    Ok(ExitCode::SUCCESS)
}

fn rounded(mut tensors: Tensors) -> Tensors {
    for tensor in tensors.values_mut() {
        if let Data::F64(values) = &tensor.data {
            tensor.data = Data::F32(values.iter().map(|&value| value as f32).collect());
        }
    }
    tensors
}
