//! The system's own Vulkan driver, and `cargo xtask driver`.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;
use xshell::{Shell, cmd};

use crate::Workspace;
use crate::mesa::{self, Mesa};

/// Package managers, with what to ask of each for Mesa's software Vulkan and OpenGL.
const INSTALLERS: [(&str, &[&str]); 5] = [
    (
        "apt-get",
        &[
            "apt-get update",
            "apt-get install -y --no-install-recommends mesa-vulkan-drivers libvulkan1 libegl1 libgl1-mesa-dri",
        ],
    ),
    (
        "dnf",
        &["dnf install -y mesa-vulkan-drivers vulkan-loader mesa-libEGL mesa-dri-drivers"],
    ),
    (
        "pacman",
        &["pacman -Sy --needed --noconfirm vulkan-swrast vulkan-icd-loader mesa"],
    ),
    (
        "apk",
        &["apk add mesa-vulkan-swrast vulkan-loader mesa-egl mesa-gles mesa-dri-gallium"],
    ),
    (
        "zypper",
        &["zypper --non-interactive install libvulkan_lvp libvulkan1 Mesa-libEGL1 Mesa-dri"],
    ),
];

/// What a task wants of the system's drivers.
#[derive(Clone, Copy, PartialEq)]
pub enum Need {
    Vulkan,
    VulkanAndOpenGl,
}

pub fn run(workspace: &Workspace) -> Result<()> {
    ensure_system(&workspace.shell, Need::VulkanAndOpenGl)?;
    if cfg!(target_os = "linux") {
        let mesa = Mesa::ensure(workspace)?;
        eprintln!(
            "the system's driver is there, and Mesa {} is unpacked; to use it in a shell:",
            mesa.version
        );
        for (name, value) in mesa.environment() {
            println!("export {name}='{value}'");
        }
    }
    Ok(())
}

/// Makes sure that the system has a driver; on Linux installs Mesa's where it has none.
pub fn ensure_system(shell: &Shell, need: Need) -> Result<()> {
    // Metal and Direct3D 12 come with the system
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    ensure!(
        env::var_os("GATEFOLD_RUNNER").is_none(),
        "this shell is set up for Mesa 26, not for the system's driver; undo that with: unset {}",
        mesa::VARIABLES.join(" ")
    );
    let Some(missing) = missing(need) else {
        return Ok(());
    };
    let installer = INSTALLERS.iter().find(|(program, _)| in_path(program));
    let (_, commands) = installer.with_context(|| {
        format!("{missing}, and no package manager known here; install Mesa's software Vulkan (lavapipe) and the Vulkan loader")
    })?;
    let prefix = match elevation(shell) {
        Some(prefix) => prefix,
        None => {
            let line: Vec<String> = commands
                .iter()
                .map(|command| format!("sudo {command}"))
                .collect();
            bail!(
                "{missing}; install Mesa's software Vulkan with: {}",
                line.join(" && ")
            );
        }
    };
    eprintln!("{missing}: installing Mesa's software Vulkan");
    for command in commands.iter() {
        let words: Vec<&str> = prefix
            .iter()
            .copied()
            .chain(command.split_whitespace())
            .collect();
        let (program, arguments) = (words[0], &words[1..]);
        cmd!(shell, "{program} {arguments...}")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .run()?;
    }
    match self::missing(need) {
        Some(missing) => bail!("{missing}, even after the installation"),
        None => Ok(()),
    }
}

fn missing(need: Need) -> Option<&'static str> {
    if !loads("libvulkan.so.1") {
        Some("the Vulkan loader (libvulkan.so.1) is missing")
    } else if !has_icd() {
        Some("no Vulkan driver is installed")
    } else if need == Need::VulkanAndOpenGl && !loads("libEGL.so.1") {
        Some("OpenGL (libEGL.so.1) is missing")
    } else {
        None
    }
}

fn loads(library: &str) -> bool {
    // SAFETY: both libraries are loaded by wgpu in the same way; their initialisers need nothing of
    // us, and nothing is called.
    unsafe { Library::new(library) }.is_ok()
}

fn has_icd() -> bool {
    let given = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    given("VK_DRIVER_FILES") || given("VK_ICD_FILENAMES") || icds().next().is_some()
}

/// The names of the installed Vulkan drivers' files.
fn icds() -> impl Iterator<Item = String> {
    let user = env::var("HOME").map(|home| format!("{home}/.local/share"));
    let system = [
        "/etc",
        "/usr/share",
        "/usr/local/etc",
        "/usr/local/share",
        "/run/opengl-driver/share",
    ];
    let folders = system.map(str::to_owned).into_iter().chain(user);
    folders
        .filter_map(|folder| fs::read_dir(Path::new(&folder).join("vulkan/icd.d")).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".json"))
}

/// Whether a GPU is in this machine that a Vulkan driver could reach.
pub fn has_gpu() -> bool {
    // in a container NVIDIA's device files may be there without its Vulkan driver
    let nvidia = Path::new("/dev/nvidiactl").exists() && icds().any(|name| name.contains("nvidia"));
    let nodes = fs::read_dir("/dev/dri").into_iter().flatten().flatten();
    let mut drivers = nodes
        .filter_map(|node| node.file_name().into_string().ok())
        .filter(|name| name.starts_with("renderD"))
        .filter_map(|name| fs::read_link(format!("/sys/class/drm/{name}/device/driver")).ok())
        .filter_map(|link| Some(link.file_name()?.to_str()?.to_owned()));
    nvidia || drivers.any(|driver| is_gpu_driver(&driver))
}

/// Kernel drivers with a render node and no GPU of their own behind it; NVIDIA's is asked above.
fn is_gpu_driver(driver: &str) -> bool {
    !["vgem", "virtio_gpu", "virtio-pci", "vmwgfx", "nvidia"].contains(&driver)
}

/// The words before a command that needs the administrator's rights, where we may.
fn elevation(shell: &Shell) -> Option<&'static [&'static str]> {
    let succeeds = |program: &str, arguments: &[&str]| {
        cmd!(shell, "{program} {arguments...}")
            .quiet()
            .ignore_stderr()
            .read()
    };
    if succeeds("id", &["-u"]).is_ok_and(|user| user == "0") {
        Some(&[])
    } else if succeeds("sudo", &["-n", "true"]).is_ok() {
        Some(&["sudo", "-n", "--preserve-env=DEBIAN_FRONTEND"])
    } else {
        None
    }
}

fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
