//! Every kernel in every form that a plan can choose, checked as text, without a GPU: it parses and validates,
//! agrees with what the host says about it, keeps the device's limits, and translates for every backend.
//!
//! A further operation is one line in common/launches.rs.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::launches::{Form, forms};
use gatefold::Variant;
use gatefold::kernel::Access;
use naga::valid::{Capabilities as Abilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ScalarKind, StorageAccess, TypeInner, back};

fn label(form: &Form) -> String {
    format!("{} {} {:?}", form.kernel.name, form.variant, form.constants)
}

/// As wgpu allows them to a device that can run the variant; pairs of halves may be unpacked everywhere.
fn abilities(form: &Form) -> Abilities {
    let halves = Abilities::SHADER_FLOAT16_IN_FLOAT32;
    match form.variant {
        Variant::Portable => halves,
        _ if has_matrices(form) => {
            halves | Abilities::SUBGROUP | Abilities::SHADER_FLOAT16 | Abilities::COOPERATIVE_MATRIX
        }
        _ => halves | Abilities::SUBGROUP,
    }
}

/// Cooperative matrices are known to wgpu alone, and to its backends for Vulkan and Metal.
fn has_matrices(form: &Form) -> bool {
    form.kernel.enables.contains(&"wgpu_cooperative_matrix")
}

/// Runs `check` for all forms, on all cores.
fn for_all_forms(check: impl Fn(&Form) + Sync) {
    let forms = forms();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for part in forms.chunks(forms.len().div_ceil(threads)) {
            scope.spawn(|| part.iter().for_each(&check));
        }
    });
}

fn validated(form: &Form, shared: bool) -> (Module, ModuleInfo) {
    let source = form.kernel.source(&form.constants, shared);
    let options = naga::front::wgsl::Options {
        capabilities: abilities(form),
        ..naga::front::wgsl::Options::new()
    };
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .unwrap_or_else(|error| panic!("{}: {}", label(form), error.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), abilities(form))
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}: {}", label(form), error.emit_to_string(&source)));
    (module, info)
}

#[test]
fn every_form_agrees_with_the_host_and_keeps_the_limits() {
    for_all_forms(|form| {
        let (module, _) = validated(form, false);
        let label = label(form);
        let [entry] = &module.entry_points[..] else {
            panic!("{label}: one entry point");
        };
        assert_eq!(entry.name, form.kernel.name, "{label}");
        let invocations: u32 = entry.workgroup_size.iter().product();
        assert!(
            invocations <= form.workgroup_invocations,
            "{label}: {invocations} invocations"
        );
        let memory = workgroup_memory(&module);
        assert!(
            memory <= form.workgroup_memory,
            "{label}: {memory} bytes of workgroup memory"
        );
        assert_eq!(params(&module), form.kernel.params, "{label}: Params");
        let steps = form.kernel.stepped.then_some((1, 0, Binding::Uniform));
        let storage = form.kernel.storage.iter().zip(1..);
        let storage = storage.map(|(&access, i)| (0, i, Binding::Storage(access)));
        let uniform = (!form.kernel.params.is_empty()).then_some((0, 0, Binding::Uniform));
        let expected: Vec<_> = uniform.into_iter().chain(storage).chain(steps).collect();
        assert_eq!(bindings(&module), expected, "{label}: bindings");

        let (module, _) = validated(form, true);
        let read_only =
            |(_, _, binding): &(_, _, Binding)| *binding == Binding::Storage(Access::Read);
        assert!(!bindings(&module).iter().any(read_only), "{label}: shared");
    });
}

/// As WebGPU counts it: each variable rounded up to 16 bytes.
fn workgroup_memory(module: &Module) -> u32 {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let variables = module.global_variables.iter();
    variables
        .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
        .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
        .sum()
}

/// Names and types of the fields of `Params`, which lie four bytes apart.
fn params(module: &Module) -> Vec<(&str, &str)> {
    let is_params = |ty: &&naga::Type| ty.name.as_deref() == Some("Params");
    let Some(ty) = module.types.iter().map(|(_, ty)| ty).find(is_params) else {
        return Vec::new();
    };
    let TypeInner::Struct { members, .. } = &ty.inner else {
        panic!("Params is no struct");
    };
    let mut fields = Vec::new();
    for (i, member) in members.iter().enumerate() {
        let name = member.name.as_deref().unwrap_or_default();
        assert_eq!(member.offset as usize, 4 * i, "offset of Params.{name}");
        let ty = match module.types[member.ty].inner {
            TypeInner::Scalar(scalar) if scalar.width == 4 => match scalar.kind {
                ScalarKind::Uint => "u32",
                ScalarKind::Sint => "i32",
                ScalarKind::Float => "f32",
                kind => panic!("Params.{name} is {kind:?}"),
            },
            ref inner => panic!("Params.{name} is {inner:?}"),
        };
        fields.push((name, ty));
    }
    fields
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Binding {
    Uniform,
    Storage(Access),
}

/// Group, number and kind of every binding, in order.
fn bindings(module: &Module) -> Vec<(u32, u32, Binding)> {
    let variables = module.global_variables.iter();
    let mut bindings: Vec<_> = variables
        .filter_map(|(_, variable)| {
            let at = variable.binding?;
            let kind = match variable.space {
                AddressSpace::Uniform => Binding::Uniform,
                AddressSpace::Storage { access } if access == StorageAccess::LOAD => {
                    Binding::Storage(Access::Read)
                }
                AddressSpace::Storage { .. } => Binding::Storage(Access::Write),
                space => panic!("{:?} lies in {space:?}", variable.name),
            };
            Some((at.group, at.binding, kind))
        })
        .collect();
    bindings.sort_by_key(|&(group, binding, _)| (group, binding));
    bindings
}

#[test]
fn every_form_translates_for_vulkan_metal_and_direct3d() {
    for_all_forms(|form| {
        let (module, info) = validated(form, false);
        let label = label(form);
        let entry = (naga::ShaderStage::Compute, form.kernel.name.to_owned());

        let spv = back::spv::Options {
            // of Vulkan 1.1, where subgroups begin
            lang_version: (1, 3),
            ..Default::default()
        };
        back::spv::write_vec(&module, &info, &spv, None)
            .unwrap_or_else(|error| panic!("{label}: SPIR-V: {error}"));

        let msl = back::msl::Options {
            lang_version: (2, 4),
            fake_missing_bindings: true,
            ..Default::default()
        };
        back::msl::write_string(&module, &info, &msl, &Default::default())
            .unwrap_or_else(|error| panic!("{label}: MSL: {error}"));

        if has_matrices(form) {
            return;
        }
        let hlsl = back::hlsl::Options {
            // 5.1 is that of FXC, which wgpu falls back to; 6.0 brought the wave intrinsics
            shader_model: match form.variant {
                Variant::Portable => back::hlsl::ShaderModel::V5_1,
                _ => back::hlsl::ShaderModel::V6_0,
            },
            fake_missing_bindings: true,
            ..Default::default()
        };
        let pipeline = back::hlsl::PipelineOptions {
            entry_point: Some(entry),
        };
        back::hlsl::Writer::new(&mut String::new(), &hlsl, &pipeline)
            .write(&module, &info, None)
            .unwrap_or_else(|error| panic!("{label}: HLSL: {error}"));
    });
}

/// The compiler of Chrome refuses what naga lets pass: barriers and subgroup operations in flow that is
/// not uniform.
#[test]
fn every_form_passes_tint() {
    if Command::new("tint").arg("--help").output().is_err() {
        eprintln!(
            "skipped: there is no `tint` on the PATH to check that barriers are in uniform flow"
        );
        return;
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    for_all_forms(|form| {
        if has_matrices(form) {
            return;
        }
        let enable = match form.variant {
            Variant::Portable => "",
            _ => "enable subgroups;\n",
        };
        let thread = std::thread::current().id();
        for shared in [false, true] {
            let path = folder.join(format!("tint-{}-{thread:?}.wgsl", std::process::id()));
            std::fs::write(
                &path,
                enable.to_owned() + &form.kernel.source(&form.constants, shared),
            )
            .unwrap();
            let tint = Command::new("tint")
                .args(["--format", "wgsl"])
                .arg(&path)
                .output()
                .unwrap();
            std::fs::remove_file(&path).unwrap();
            let message = String::from_utf8_lossy(&tint.stderr);
            assert!(tint.status.success(), "{}: {message}", label(form));
        }
    });
}
