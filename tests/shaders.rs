//! Every kernel in every form that a plan can choose, checked as text, without a GPU: it parses and validates,
//! agrees with what the host says about it, keeps the device's limits, and translates for every backend.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use gatefold::kernel::{Access, Constants, Kernel};
use gatefold::{AttentionConfig, AttentionShape, Capabilities, Causal, Plan, Variant};
use naga::valid::{Capabilities as Abilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ScalarKind, StorageAccess, TypeInner, back};

/// What each operation plans on a device: one line per operation.
const OPERATIONS: &[fn(&Capabilities) -> Vec<Plan>] = &[attention];

fn attention(device: &Capabilities) -> Vec<Plan> {
    const DIMS: [(u32, u32); 11] = [
        (1, 1),
        (7, 13),
        (16, 16),
        (33, 5),
        (64, 64),
        (80, 80),
        (97, 40),
        (64, 128),
        (128, 128),
        (192, 128),
        (256, 256),
    ];
    let mut plans = Vec::new();
    for (head_dim, value_dim) in DIMS {
        for causal in [Causal::No, Causal::TopLeft] {
            for variant in AttentionConfig::default().variants(device) {
                let config = AttentionConfig {
                    head_dim,
                    value_dim: Some(value_dim),
                    causal,
                    variant: Some(variant),
                    ..Default::default()
                };
                let shape = AttentionShape::new(2, 6, 2, 65, 129);
                plans.push(config.plan(device, shape, true).unwrap());
            }
        }
    }
    plans
}

/// Devices that stand for the kinds there are: GPUs and CPUs, with subgroups of one size, of several or none.
fn devices() -> Vec<Capabilities> {
    const KINDS: [(bool, Option<(u32, u32)>); 9] = [
        (false, None),
        (false, Some((32, 32))),
        (false, Some((64, 64))),
        (false, Some((32, 64))),
        (false, Some((4, 64))),
        (true, None),
        (true, Some((4, 4))),
        (true, Some((8, 8))),
        (true, Some((32, 32))),
    ];
    let mut devices = vec![Capabilities::floor()];
    for (cpu, subgroup_size) in KINDS {
        for kilobytes in [16, 32, 48] {
            devices.push(Capabilities {
                cpu,
                subgroup_size,
                workgroup_memory: kilobytes * 1024,
                ..Capabilities::floor()
            });
        }
    }
    devices
}

/// One form of a kernel, the weakest limits among the devices it is planned for, and what it may use.
struct Form {
    kernel: Kernel,
    constants: Constants,
    variant: Variant,
    workgroup_memory: u32,
    workgroup_invocations: u32,
}

impl Form {
    fn source(&self, shared: bool) -> String {
        self.kernel.source(&self.constants, shared)
    }

    fn label(&self) -> String {
        format!("{} {} {:?}", self.kernel.name, self.variant, self.constants)
    }

    /// As wgpu allows them to a device that can run the variant.
    fn abilities(&self) -> Abilities {
        match self.variant {
            Variant::Portable => Abilities::empty(),
            _ => Abilities::SUBGROUP,
        }
    }
}

/// All forms, each once.
fn forms() -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    let mut known = HashMap::new();
    for device in devices() {
        for plan in OPERATIONS.iter().flat_map(|plans| plans(&device)) {
            for dispatch in plan.dispatches {
                let fields = dispatch.kernel.params.len();
                assert_eq!(
                    dispatch.params.len(),
                    4 * fields,
                    "{}",
                    dispatch.kernel.name
                );
                let key = (dispatch.kernel, dispatch.constants.clone(), plan.variant);
                let at = *known.entry(key).or_insert(forms.len());
                if at == forms.len() {
                    forms.push(Form {
                        kernel: dispatch.kernel,
                        constants: dispatch.constants,
                        variant: plan.variant,
                        workgroup_memory: u32::MAX,
                        workgroup_invocations: u32::MAX,
                    });
                }
                let form = &mut forms[at];
                form.workgroup_memory = form.workgroup_memory.min(device.workgroup_memory);
                form.workgroup_invocations =
                    form.workgroup_invocations.min(device.workgroup_invocations);
            }
        }
    }
    forms
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
    let source = form.source(shared);
    let options = naga::front::wgsl::Options {
        capabilities: form.abilities(),
        ..naga::front::wgsl::Options::new()
    };
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .unwrap_or_else(|error| panic!("{}: {}", form.label(), error.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), form.abilities())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}: {}", form.label(), error.emit_to_string(&source)));
    (module, info)
}

#[test]
fn every_form_agrees_with_the_host_and_keeps_the_limits() {
    for_all_forms(|form| {
        let (module, _) = validated(form, false);
        let label = form.label();
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
        for shared in [false, true] {
            let (module, info) = validated(form, shared);
            let label = form.label();
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
        }
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
        let enable = match form.variant {
            Variant::Portable => "",
            _ => "enable subgroups;\n",
        };
        let thread = std::thread::current().id();
        for shared in [false, true] {
            let path = folder.join(format!("tint-{}-{thread:?}.wgsl", std::process::id()));
            std::fs::write(&path, enable.to_owned() + &form.source(shared)).unwrap();
            let tint = Command::new("tint")
                .args(["--format", "wgsl"])
                .arg(&path)
                .output()
                .unwrap();
            std::fs::remove_file(&path).unwrap();
            let message = String::from_utf8_lossy(&tint.stderr);
            assert!(tint.status.success(), "{}: {message}", form.label());
        }
    });
}

/// Stem and text of the files in shaders/.
fn files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let files = std::fs::read_dir(folder).unwrap().map(|file| {
        let path = file.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        (stem, std::fs::read_to_string(path).unwrap())
    });
    files.collect()
}

#[test]
fn every_file_is_part_of_some_kernel() {
    let forms = forms();
    for (stem, text) in files() {
        let used = |form: &Form| form.kernel.parts.contains(&text.as_str());
        assert!(forms.iter().any(used), "shaders/{stem}.wgsl is dead");
    }
}

#[test]
fn files_begin_with_a_header() {
    const BLOCKS: [&str; 7] = [
        "Layout",
        "Grid",
        "Workgroup",
        "Memory",
        "Holds",
        "Precision",
        "Parts",
    ];
    let files = files();
    for (stem, text) in &files {
        let header: Vec<&str> = text
            .lines()
            .map_while(|line| line.strip_prefix("//"))
            .collect();
        let title = header.first().copied().unwrap_or_default();
        assert!(
            title.starts_with(&format!(" {stem}: ")),
            "{stem}: the title is \"{title}\""
        );
        if !text.contains("@compute") {
            continue;
        }
        let first_word = |line: &&str| {
            line.split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let unindented = header.iter().filter(|line| !line.starts_with("  "));
        let words: Vec<String> = unindented.map(first_word).collect();
        let blocks: Vec<&String> = words
            .iter()
            .filter(|word| BLOCKS.contains(&word.as_str()))
            .collect();
        assert_eq!(blocks, BLOCKS, "{stem}: the blocks of the header");
        let parts = header
            .iter()
            .skip_while(|line| !line.starts_with(" Parts"))
            .flat_map(|line| line.split([' ', ',']));
        for part in parts.filter_map(|word| word.strip_suffix(".wgsl")) {
            assert!(
                files.iter().any(|(stem, _)| stem == part),
                "{stem}: no part {part}"
            );
        }
    }
}

#[test]
fn files_keep_the_house_style() {
    for (stem, text) in files() {
        assert!(text.lines().count() <= 260, "{stem}: too long");
        let mut previous = "";
        for (number, line) in text.lines().enumerate() {
            let at = format!("shaders/{stem}.wgsl:{}: {line}", number + 1);
            assert!(!line.contains('\t'), "{at}: a tab");
            assert!(line.chars().count() <= 100, "{at}: more than 100 columns");
            let code = line.split("//").next().unwrap_or_default();
            assert!(
                !calls(code, "main"),
                "{at}: an entry point is named as its file"
            );
            let bounded = stem == "common" || !calls(code, "tanh");
            assert!(
                bounded,
                "{at}: tanh overflows on some drivers; call tanh_bounded"
            );
            let explained = previous.trim_start().starts_with("//");
            assert!(
                explained || !calls(code, "workgroupBarrier"),
                "{at}: what is visible or free now?"
            );
            previous = line;
        }
    }
}

/// Whether `name(` stands in `code`, not as the end of a longer name.
fn calls(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}(")).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}
