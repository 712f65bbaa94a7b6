//! `cargo xtask image`: a container image of one of this repository's programs, without a container engine. In: which
//! program; out: an archive, and on standard output its path. Pushes nothing anywhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use testbed::Image;

use crate::host;

#[derive(Args)]
#[command(after_help = "\
The archive is the kind that `docker save` writes. A node takes it with
  ctr -n k8s.io images import FILE
and docker, podman and kind with their `load`. The same program gives the same archive, byte by byte.")]
pub(crate) struct Options {
    /// The program that the image is made of
    #[arg(default_value = "agent")]
    program: Program,

    /// The image's tag [default: this version]
    #[arg(long)]
    tag: Option<String>,

    /// The archive to write [default: images/NAME-TAG.tar in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Program {
    /// sluice-agent:VERSION, what the DaemonSet runs
    Agent,
    /// sluice-loadtest:VERSION, a gRPC server and load generator to try it with
    Loadtest,
}

impl Program {
    /// The package, and the program in it.
    fn package(self) -> &'static str {
        match self {
            Program::Agent => "sluice-agent",
            Program::Loadtest => "loadtest",
        }
    }

    /// The image of the built program in this folder.
    fn image(self, folder: &Path, tag: &str) -> Result<Image> {
        let program = folder.join(self.package());
        let image = match self {
            Program::Agent => Image::of_program("sluice-agent", tag, &program)?
                .label("org.opencontainers.image.title", "sluice-agent")
                .label("org.opencontainers.image.description", "Spreads every gRPC call over the Service's endpoints"),
            Program::Loadtest => Image::of_program("sluice-loadtest", tag, &program)?
                // Needs no privilege, and a restricted namespace asks for a user that is not root.
                .user("65532:65532")
                .label("org.opencontainers.image.title", "sluice-loadtest")
                .label("org.opencontainers.image.description", "A gRPC echo server and load generator"),
        };
        Ok(image
            .label("org.opencontainers.image.version", env!("CARGO_PKG_VERSION"))
            .label("org.opencontainers.image.licenses", "Apache-2.0"))
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let tag = options.tag.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    let folder = host::static_programs(&[options.program.package()])?;
    let image = options.program.image(&folder, tag)?;
    let output = match &options.output {
        Some(file) => file.clone(),
        None => archive(&image)?,
    };
    image.write(&output)?;
    host::step(&format!("{}, to be imported with `ctr -n k8s.io images import`:", image.reference()));
    println!("{}", output.display());
    Ok(())
}

/// Makes both images of this version, where [`run`] puts them unless told otherwise.
pub(crate) fn make() -> Result<()> {
    let programs = Program::value_variants();
    let folder = host::static_programs(&programs.iter().map(|program| program.package()).collect::<Vec<_>>())?;
    for program in programs {
        let image = program.image(&folder, env!("CARGO_PKG_VERSION"))?;
        image.write(&archive(&image)?)?;
    }
    Ok(())
}

fn archive(image: &Image) -> Result<PathBuf> {
    let folder = host::target().join("images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(format!("{}.tar", image.reference().replace(':', "-"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containerfile_makes_the_same_images() {
        let read = |file: &str| fs::read_to_string(host::workspace().join(file)).unwrap();
        let containerfile = read("manifests/Containerfile");
        let toolchain = read("rust-toolchain.toml");
        let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
        assert!(containerfile.contains(&format!("FROM rust:{channel}-")), "not Rust {channel}");
        assert!(
            containerfile.contains(&format!("RUSTFLAGS=\"{}\" CARGO_PROFILE_RELEASE_STRIP=debuginfo", host::STATIC))
        );
        let label = format!("org.opencontainers.image.version=\"{}\"", env!("CARGO_PKG_VERSION"));
        assert_eq!(containerfile.matches(&label).count(), Program::value_variants().len());
        for program in Program::value_variants() {
            let entrypoint = format!("ENTRYPOINT [\"/usr/bin/{}\"]", program.package());
            assert!(containerfile.contains(&entrypoint), "{program:?}");
        }
        for member in ["ebpf", "agent", "loadtest", "tests", "xtask"] {
            assert!(containerfile.contains(&format!("COPY {member} {member}\n")), "{member}");
        }
    }
}
