//! `gatefold info`: adapters, and what would run there and why.

use std::process::ExitCode;

use gatefold::{Capabilities, Gpu, Variant, wgpu};
use serde::Serialize;

use crate::adapter::{self, Adapter};
use crate::error::Result;
use crate::ops::{self, Problem};
use crate::report::Cell;
use crate::{args, report};

#[derive(Serialize)]
struct Document {
    schema: u32,
    version: &'static str,
    adapters: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    adapter: Adapter,
    capabilities: Abilities,
    operations: Vec<Choice>,
}

#[derive(Serialize)]
struct Abilities {
    cpu: bool,
    subgroup_min_size: Option<u32>,
    subgroup_max_size: Option<u32>,
    f16: bool,
    timestamps: bool,
    /// Rows and columns of cooperative matrices.
    cooperative: Option<u32>,
    workgroup_memory: u32,
    workgroup_invocations: u32,
    storage_binding_size: u64,
}

#[derive(Serialize)]
struct Choice {
    op: &'static str,
    shape: String,
    /// What would run; absent where nothing can.
    variant: Option<String>,
    tile: String,
    why: String,
    /// Better variants that step aside.
    not: Vec<Declined>,
}

#[derive(Serialize)]
struct Declined {
    variant: String,
    why: String,
}

pub fn run(args: &args::Info) -> Result<ExitCode> {
    let gpus = adapter::open_all(args.adapter.as_deref())?;
    let entries: Vec<Entry> = gpus.iter().map(entry).collect();
    let mut title = format!("gatefold {}", env!("CARGO_PKG_VERSION"));
    for entry in &entries {
        title += &format!("\n{}", abilities_line(entry));
    }
    let rows: Vec<_> = entries.iter().flat_map(rows).collect();
    let header = ["adapter", "op", "shape", "variant", "tile", "why"];
    let document = Document {
        schema: 1,
        version: env!("CARGO_PKG_VERSION"),
        adapters: entries,
    };
    report::print(args.output, &title, &header, &rows, &document)?;
    Ok(ExitCode::SUCCESS)
}

fn entry(gpu: &Gpu) -> Entry {
    let capabilities = *gpu.context().capabilities();
    let timestamps = gpu
        .device()
        .features()
        .contains(wgpu::Features::TIMESTAMP_QUERY);
    let (min, max) = capabilities.subgroup_size.unzip();
    Entry {
        adapter: Adapter::of(gpu.info()),
        capabilities: Abilities {
            cpu: capabilities.cpu,
            subgroup_min_size: min,
            subgroup_max_size: max,
            f16: capabilities.f16,
            timestamps,
            cooperative: capabilities.cooperative,
            workgroup_memory: capabilities.workgroup_memory,
            workgroup_invocations: capabilities.workgroup_invocations,
            storage_binding_size: capabilities.storage_binding_size,
        },
        operations: ops::showcase()
            .iter()
            .map(|problem| choice(problem.as_ref(), &capabilities))
            .collect(),
    }
}

fn choice(problem: &dyn Problem, capabilities: &Capabilities) -> Choice {
    let shape = ops::describe(problem);
    let declined = |variant: &Variant| Declined {
        variant: variant.to_string(),
        why: lacking(problem.op(), *variant, capabilities),
    };
    let able = problem.variants(capabilities);
    let not = Variant::ALL
        .iter()
        .filter(|variant| !able.contains(variant))
        .map(declined)
        .collect();
    let op = problem.op();
    match problem.plan(capabilities, None) {
        Ok(plan) => Choice {
            op,
            shape,
            variant: Some(plan.variant.to_string()),
            tile: plan.describe,
            why: reason(plan.variant, capabilities),
            not,
        },
        Err(error) => Choice {
            op,
            shape,
            variant: None,
            tile: String::new(),
            why: error.to_string(),
            not,
        },
    }
}

fn reason(variant: Variant, capabilities: &Capabilities) -> String {
    let device = if capabilities.cpu {
        "computes on a CPU"
    } else {
        "a GPU"
    };
    match (variant, capabilities.subgroup_size) {
        (Variant::Subgroup, Some(size)) => format!("{device} with {}", subgroups(size)),
        (Variant::Cooperative, _) => format!("{device} with matrix units"),
        _ => format!("{device}; this variant runs everywhere"),
    }
}

fn subgroups((min, max): (u32, u32)) -> String {
    if min == max {
        format!("subgroups of {min}")
    } else {
        format!("subgroups of {min} to {max}")
    }
}

fn lacking(op: &str, variant: Variant, capabilities: &Capabilities) -> String {
    match (variant, capabilities.subgroup_size) {
        (Variant::Subgroup, None) => "the device has no subgroup operations".into(),
        (Variant::Subgroup, Some((min, _))) if min < 4 => {
            format!("a subgroup may have {min} lanes, it takes 4")
        }
        (Variant::Cooperative, _) if capabilities.cooperative.is_none() => {
            "the device has no matrix units that can be used".into()
        }
        (Variant::Cooperative, _) if op == "attention" => {
            "for tensors of f16, or if asked for".into()
        }
        _ => "not for this operation".into(),
    }
}

fn abilities_line(entry: &Entry) -> String {
    let abilities = &entry.capabilities;
    let sizes = abilities.subgroup_min_size.zip(abilities.subgroup_max_size);
    let subgroups = sizes.map_or("no subgroups".into(), subgroups);
    let has = |has: bool, what: &str| {
        if has {
            what.into()
        } else {
            format!("no {what}")
        }
    };
    format!(
        "{}: {}{subgroups}, {}, {}, {} KiB of workgroup memory, bindings of {} MiB",
        entry.adapter.describe(),
        if abilities.cpu { "software, " } else { "" },
        has(abilities.f16, "f16"),
        has(abilities.timestamps, "timestamps"),
        abilities.workgroup_memory >> 10,
        abilities.storage_binding_size >> 20,
    )
}

fn rows(entry: &Entry) -> Vec<Vec<Cell>> {
    let row = |choice: &Choice| {
        let mut why = choice.why.clone();
        for declined in &choice.not {
            why += &format!("; not {}: {}", declined.variant, declined.why);
        }
        let adapter = format!("{} ({})", entry.adapter.name, entry.adapter.backend);
        vec![
            Cell::text(adapter),
            Cell::text(choice.op),
            Cell::text(&choice.shape),
            Cell::text(choice.variant.as_deref().unwrap_or("none")),
            Cell::text(&choice.tile),
            Cell::text(why),
        ]
    };
    entry.operations.iter().map(row).collect()
}
