//! Mesa 26's llvmpipe, unpacked from Debian's packages beside the build: no root, no chroot, and
//! nothing of the system is touched.
//!
//! Mesa 26 needs a newer C library than Debian 12 has. Programs built here run on it all the same
//! when the unpacked loader starts them: it brings its own C library, and an older program is
//! content with a newer one.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::{Workspace, apt};

const PACKAGE: &str = "mesa-vulkan-drivers";
const ICD: &str = "usr/share/vulkan/icd.d/lvp_icd.json";

/// What a program, a test that starts programs, and Cargo itself read to run on this Mesa.
pub const VARIABLES: [&str; 3] = [
    "VK_DRIVER_FILES",
    "GATEFOLD_RUNNER",
    if cfg!(target_arch = "aarch64") {
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER"
    } else {
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
    },
];

/// An unpacked Mesa 26 and the C library it runs with.
pub struct Mesa {
    root: PathBuf,
    pub version: String,
}

impl Mesa {
    /// The unpacked Mesa, downloaded first where it is not there yet.
    pub fn ensure(workspace: &Workspace) -> Result<Self> {
        if !cfg!(all(
            target_os = "linux",
            target_env = "gnu",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )) {
            bail!("Mesa 26 is for Linux with glibc, on x86-64 or aarch64");
        }
        let home = workspace.target.join("mesa26");
        ensure!(
            !home.to_string_lossy().contains(char::is_whitespace),
            "Cargo splits a runner at blanks and {} has one; set CARGO_TARGET_DIR to a path without",
            home.display()
        );
        let root = home.join("root");
        if let Some(mesa) = Self::open(&root) {
            return Ok(mesa);
        }
        eprintln!("unpacking Mesa 26 (a download of about 75 MB)");
        fs::create_dir_all(&home)?;
        // an own folder per process, renamed when complete: others see all of Mesa or nothing
        let work = home.join(format!("unpack-{}", std::process::id()));
        let unpacked = unpack(&workspace.shell, &work)
            .and_then(|()| replace(&work.join("root"), &root, &work));
        let cleaned = fs::remove_dir_all(&work);
        unpacked.context("cannot unpack Mesa 26")?;
        cleaned?;
        Self::open(&root).context("Mesa 26 was unpacked, but is not complete")
    }

    fn open(root: &Path) -> Option<Self> {
        let version = fs::read_to_string(root.join("version"))
            .ok()?
            .trim()
            .to_owned();
        let mesa = Self {
            root: root.to_owned(),
            version,
        };
        mesa.loader().exists().then_some(mesa)
    }

    /// What starts a program on this Mesa: words before the program's own, split at blanks.
    pub fn runner(&self) -> String {
        format!(
            "{} --library-path {}",
            self.loader().display(),
            libraries(&self.root).display()
        )
    }

    /// The values of `VARIABLES`.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        let icd = self.root.join(ICD).display().to_string();
        let values = [icd, self.runner(), self.runner()];
        std::array::from_fn(|i| (VARIABLES[i], values[i].clone()))
    }

    fn loader(&self) -> PathBuf {
        let name = match ARCH {
            "aarch64" => "ld-linux-aarch64.so.1",
            _ => "ld-linux-x86-64.so.2",
        };
        libraries(&self.root).join(name)
    }
}

fn libraries(root: &Path) -> PathBuf {
    root.join(format!("usr/lib/{ARCH}-linux-gnu"))
}

/// Downloads Mesa and all it depends on, and keeps under `work/root` what llvmpipe needs.
fn unpack(shell: &Shell, work: &Path) -> Result<()> {
    let packages = download(shell, work)?;
    let all = work.join("all");
    for package in &packages {
        cmd!(shell, "dpkg-deb --extract {package} {all}")
            .quiet()
            .run()?;
    }

    let root = work.join("root");
    let kept = libraries(&root);
    fs::create_dir_all(&kept)?;
    for entry in fs::read_dir(libraries(&all))? {
        let entry = entry?;
        let name = entry.file_name();
        if !entry.file_type()?.is_dir() && is_needed(&name.to_string_lossy()) {
            let leads_outside = fs::read_link(entry.path()).is_ok_and(|link| link.is_absolute());
            ensure!(
                !leads_outside,
                "{} is a link out of the unpacked folder",
                name.display()
            );
            fs::rename(entry.path(), kept.join(name))?;
        }
    }

    // Debian's file names the driver without a path, which the Vulkan loader would also find in the
    // system's own folders; a path is relative to the file itself
    let text = fs::read_to_string(all.join(ICD)).context("no llvmpipe in Mesa's package")?;
    let mut icd: serde_json::Value = serde_json::from_str(&text)?;
    icd["ICD"]["library_path"] = format!("../../../lib/{ARCH}-linux-gnu/libvulkan_lvp.so").into();
    fs::create_dir_all(root.join(ICD).with_file_name(""))?;
    fs::write(root.join(ICD), format!("{icd:#}\n"))?;

    let version = packages.iter().find_map(|package| version_of(package));
    let version = version.context("apt-get downloaded no Mesa")?;
    ensure!(
        major(&version) >= 26,
        "the newest Mesa of Debian's backports is {version}"
    );
    let mesa = Mesa { root, version };
    is_complete(shell, &mesa)?;
    Ok(fs::write(
        mesa.root.join("version"),
        format!("{}\n", mesa.version),
    )?)
}

/// Other GPUs' drivers and layers make up half of the package.
fn is_needed(library: &str) -> bool {
    let other_driver = library.starts_with("libvulkan_") && library != "libvulkan_lvp.so";
    library.contains(".so") && !other_driver && !library.starts_with("libVkLayer")
}

/// Resolves and downloads with an apt of our own: its sources, lists, cache and empty record of
/// installed packages lie under `work`. Proxies and the like stay as the system has them.
fn download(shell: &Shell, work: &Path) -> Result<Vec<PathBuf>> {
    let archive = apt::debian_archive(Path::new("/etc/apt"))?;
    let keyring = ["gpg", "pgp"]
        .map(|extension| {
            PathBuf::from(format!(
                "/usr/share/keyrings/debian-archive-keyring.{extension}"
            ))
        })
        .into_iter()
        .find(|keyring| keyring.exists())
        .context("no keyring of Debian here; install the package debian-archive-keyring")?;
    let architecture = cmd!(shell, "dpkg --print-architecture").quiet().read()?;

    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(folder))?;
    }
    fs::write(work.join("status"), "")?;
    let signed_by = keyring.display();
    let sources = ["trixie", "trixie-backports"]
        .map(|suite| format!("deb [signed-by={signed_by}] {archive} {suite} main\n"));
    fs::write(work.join("sources.list"), sources.concat())?;
    let config = work.join("apt.conf");
    fs::write(
        &config,
        configuration(&work.display().to_string(), &architecture),
    )?;

    let apt = |words: &[&str]| -> Result<()> {
        let output = cmd!(shell, "apt-get -qq --config-file {config} {words...}")
            .env("LC_ALL", "C")
            .quiet()
            .ignore_status()
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let reason = text
            .lines()
            .find(|line| line.starts_with("E:"))
            .unwrap_or("it gave no reason");
        bail!(
            "apt-get {} failed ({reason}); is the network there?",
            words[0]
        )
    };
    apt(&["update"])?;
    apt(&[
        "install",
        "--yes",
        "--download-only",
        "--target-release",
        "trixie-backports",
        PACKAGE,
    ])?;

    let mut packages = Vec::new();
    for entry in fs::read_dir(work.join("cache/archives"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            packages.push(path);
        }
    }
    Ok(packages)
}

fn configuration(work: &str, architecture: &str) -> String {
    // the system's hooks would clean the system's own cache
    format!(
        r#"#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Debug::NoLocking "true";
Dir::State "{work}/state";
Dir::State::status "{work}/status";
Dir::Cache "{work}/cache";
Dir::Etc::SourceList "{work}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
"#
    )
}

/// Every library of the driver must come from the unpacked folder, none from the system.
fn is_complete(shell: &Shell, mesa: &Mesa) -> Result<()> {
    let libraries = libraries(&mesa.root);
    let folder = format!("{}/", libraries.display());
    let loader = mesa.loader();
    for library in ["libvulkan.so.1", "libvulkan_lvp.so"] {
        let library = libraries.join(library);
        let list = cmd!(
            shell,
            "{loader} --inhibit-cache --library-path {libraries} --list {library}"
        )
        .quiet()
        .read()?;
        let stray = list
            .lines()
            .find(|line| line.contains("=>") && !line.contains(&folder));
        if let Some(stray) = stray {
            bail!("Mesa's packages lack a library: {}", stray.trim());
        }
    }
    Ok(())
}

fn replace(new: &Path, root: &Path, work: &Path) -> Result<()> {
    if root.exists() {
        // incomplete, or another process was faster; either way the newer one is as good
        fs::rename(root, work.join("old"))?;
    }
    Ok(fs::rename(new, root)?)
}

/// The version in a file name such as `mesa-vulkan-drivers_26.1.6-1~bpo13+1_amd64.deb`.
fn version_of(package: &Path) -> Option<String> {
    let mut parts = package.file_name()?.to_str()?.split('_');
    (parts.next()? == PACKAGE).then_some(parts.next()?.to_owned())
}

fn major(version: &str) -> u32 {
    version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or(0)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn runner_is_words_split_at_blanks() {
        let root = "/r/mesa26";
        let mesa = Mesa {
            root: root.into(),
            version: "26.1.6".into(),
        };
        let runner = mesa.runner();
        let words: Vec<&str> = runner.split_whitespace().collect();
        let folder = format!("{root}/usr/lib/{ARCH}-linux-gnu");
        assert!(words[0].starts_with(&format!("{folder}/ld-linux-")));
        assert_eq!(words[1..], ["--library-path", &folder]);
        let environment = mesa.environment();
        assert_eq!(environment[1].1, environment[2].1);
        assert_eq!(
            environment[0].1,
            format!("{root}/usr/share/vulkan/icd.d/lvp_icd.json")
        );
    }

    #[test]
    fn version_is_in_the_file_name() {
        let version = |name: &str| version_of(Path::new(name));
        assert_eq!(
            version("a/mesa-vulkan-drivers_26.1.6-1~bpo13+1_amd64.deb").as_deref(),
            Some("26.1.6-1~bpo13+1")
        );
        assert_eq!(version("a/libllvm19_1%3a19.1.7-3+b1_amd64.deb"), None);
        assert_eq!(major("26.1.6-1~bpo13+1"), 26);
        assert_eq!(major("odd"), 0);
    }

    #[test]
    fn only_llvmpipe_is_kept() {
        assert!(is_needed("libvulkan.so.1"));
        assert!(is_needed("libvulkan_lvp.so"));
        assert!(is_needed("ld-linux-x86-64.so.2"));
        assert!(!is_needed("libvulkan_radeon.so"));
        assert!(!is_needed("libVkLayer_MESA_overlay.so"));
        assert!(!is_needed("notes.txt"));
    }
}
