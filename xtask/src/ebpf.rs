//! `cargo xtask ebpf [--check]`: builds the BPF object from its source, with pinned tools and without paths of this
//! machine in it, so that everybody's build is the same byte for byte.
//! Out: `ebpf/sluice.bpf.o` and the versions that made it; with `--check` only whether they are still what the source builds.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

const USAGE: &str = "usage: cargo xtask ebpf [--check]";

/// Debian's own builds of Rust and LLVM, which go together; rust-web-src has `core`, which is built for the BPF target.
const PACKAGES: [&str; 6] = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev", "libpolly-22-dev", "g++"];
const LLVM_BIN: &str = "/usr/lib/llvm-22/bin";
const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";
const BPF_LINKER: &str = "0.13.0";
const TARGET: &str = "bpfel-unknown-none";

/// Profile of the build, whatever the workspace's own profiles say: bpf-linker does the link-time optimisation.
const PROFILE: [(&str, &str); 8] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),
    ("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all"),
    ("CARGO_INCREMENTAL", "0"),
];

/// Runs the command with the arguments behind `ebpf`.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    let check = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--check"] => true,
        _ => bail!("{USAGE}"),
    };
    let places = Places::new()?;
    install_packages()?;
    install_bpf_linker(&places)?;
    let versions = versions(&places)?;
    let built = build(&places)?;
    if check { compare(&places, &built, &versions) } else { commit(&places, &built, &versions) }
}

/// Directories of one checkout.
struct Places {
    root: PathBuf,
    cargo_home: PathBuf,
    /// All that this command makes, below the workspace's target directory.
    work: PathBuf,
}

impl Places {
    fn new() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?.to_path_buf();
        let cargo_home = match env::var_os("CARGO_HOME") {
            Some(home) => PathBuf::from(home),
            None => PathBuf::from(env::var_os("HOME").context("set HOME or CARGO_HOME")?).join(".cargo"),
        };
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, cargo_home, work: target.join("ebpf") })
    }

    fn object(&self) -> PathBuf {
        self.root.join("ebpf/sluice.bpf.o")
    }

    /// The tools that built the object, a line each.
    fn versions(&self) -> PathBuf {
        self.root.join("ebpf/sluice.bpf.o.versions")
    }

    fn bpf_linker(&self) -> PathBuf {
        self.work.join("tools/bin/bpf-linker")
    }
}

fn install_packages() -> anyhow::Result<()> {
    let missing: Vec<_> = PACKAGES.into_iter().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = missing.join(" ");
    eprintln!("installing {wanted}");
    let cure = format!("install them by hand (Debian 12 or 13): apt-get update && apt-get install {wanted}");
    // Another installation may hold dpkg's lock for a while. A package list that is too old is brought up to date.
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        run_to_end(
            apt.args(["-o", "DPkg::Lock::Timeout=600", "-q"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    let install: Vec<&str> = ["install", "-y", "--no-install-recommends"].into_iter().chain(missing).collect();
    apt(&install).or_else(|_| apt(&["update"]).and_then(|()| apt(&install))).context(cure)
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    query.is_ok_and(|output| output.stdout == b"installed")
}

fn install_bpf_linker(places: &Places) -> anyhow::Result<()> {
    let wanted = format!("bpf-linker {BPF_LINKER}");
    if output(Command::new(places.bpf_linker()).arg("--version")).is_ok_and(|version| version == wanted) {
        return Ok(());
    }
    eprintln!("building {wanted} (once, about a minute)");
    let mut cargo = cargo(places)?;
    cargo.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force", "--no-default-features"]);
    cargo.args(["--features", "llvm-22", "--root"]).arg(places.work.join("tools"));
    cargo.arg("--target-dir").arg(places.work.join("tools-build"));
    run_to_end(&mut cargo).with_context(|| format!("build {wanted}"))
}

/// Builds and strips the object; returns where it is.
fn build(places: &Places) -> anyhow::Result<PathBuf> {
    let build_dir = places.work.join("build");
    let mut cargo = cargo(places)?;
    cargo.args(["build", "--quiet", "--locked", "--release", "--package", "sluice-ebpf", "--bin", "sluice-bpf"]);
    cargo
        .args(["--features", "programs", "--target", TARGET, "-Zbuild-std=core", "-Ztrim-paths", "--target-dir"])
        .arg(&build_dir);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf").envs(PROFILE);
    // Without it the host's architecture decides, though nothing that the programs use depends on one.
    cargo.env("AYA_BPF_TARGET_ARCH", "x86_64");
    run_to_end(&mut cargo).context("build the BPF programs")?;

    let stripped = places.work.join("sluice.bpf.o");
    let linked = build_dir.join(TARGET).join("release/sluice-bpf");
    // DWARF goes; BTF, with the source lines that `bpftool prog dump` shows, stays.
    let strip = Path::new(LLVM_BIN).join("llvm-strip");
    run_to_end(Command::new(strip).arg("--strip-debug").arg(linked).arg("-o").arg(&stripped))
        .context("strip the BPF object")?;
    Ok(stripped)
}

fn commit(places: &Places, built: &Path, versions: &str) -> anyhow::Result<()> {
    fs::copy(built, places.object()).with_context(|| format!("write {}", places.object().display()))?;
    fs::write(places.versions(), versions).with_context(|| format!("write {}", places.versions().display()))?;
    eprintln!("built {} ({} bytes) with", places.object().display(), fs::metadata(built)?.len());
    eprint!("{versions}");
    Ok(())
}

fn compare(places: &Places, built: &Path, versions: &str) -> anyhow::Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    if read(built)? == read(&places.object())? {
        eprintln!("{} is what its source builds", places.object().display());
        return Ok(());
    }
    let recorded = fs::read_to_string(places.versions()).unwrap_or_else(|_| "unknown\n".into());
    let cure = if recorded == versions {
        "The tools are the same, so the source has changed since: run `cargo xtask ebpf` and commit what it writes."
    } else {
        "The tools differ: use the recorded ones, or run `cargo xtask ebpf` with yours and commit what it writes."
    };
    bail!(
        "{} is not what its source builds.\nBuilt now with:\n{versions}Recorded:\n{recorded}{cure}\nThe build to compare with: {}",
        places.object().display(),
        built.display()
    )
}

fn versions(places: &Places) -> anyhow::Result<String> {
    let rustc = output(Command::new(RUSTC).arg("--version"))?;
    let llvm = output(Command::new(Path::new(LLVM_BIN).join("llvm-config")).arg("--version"))?;
    let linker = output(Command::new(places.bpf_linker()).arg("--version"))?;
    let source = output(Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Version}", "rust-web-src"]))?;
    Ok(format!("{rustc}\nLLVM {llvm}\n{linker}\n{source}\n"))
}

/// Debian's cargo with Debian's rustc, LLVM and our linker, and nothing of the caller's own cargo settings but the network's.
fn cargo(places: &Places) -> anyhow::Result<Command> {
    const KEPT: [&str; 4] = ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    let mut cargo = Command::new(CARGO);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let is_setting = ["CARGO", "RUST"].iter().any(|prefix| name.starts_with(prefix));
        if is_setting && !KEPT.iter().any(|prefix| name.starts_with(prefix)) {
            cargo.env_remove(&*name);
        }
    }
    let tools = places.work.join("tools/bin");
    let path = env::join_paths([tools.as_path(), Path::new(LLVM_BIN), Path::new("/usr/bin"), Path::new("/bin")])?;
    cargo.current_dir(&places.root).env("PATH", path).env("CARGO_HOME", &places.cargo_home).env("RUSTC", RUSTC);
    // Debian's compiler is a stable one; building `core`, trimming paths and inline assembly for BPF are not stable yet.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    Ok(cargo)
}

fn run_to_end(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(status.success(), "{:?} failed: {status}", command.get_program());
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{:?} failed: {}", command.get_program(), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
