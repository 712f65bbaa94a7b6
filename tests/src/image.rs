//! A container image without a container engine. In: files and an entrypoint; out: one archive that
//! `ctr images import`, `docker load`, `podman load` and `kind load image-archive` take. One layer, for this machine's
//! architecture; no clock, no user and no order of a file system gets in, so the same input is the same archive, byte
//! by byte. Builds no program and talks to no registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The only time in an image: the beginning of Unix time, in the configuration's spelling.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// An image about to be written.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    tag: String,
    /// By absolute path: content and mode.
    files: BTreeMap<String, (Vec<u8>, u32)>,
    entrypoint: Vec<String>,
    user: String,
    labels: BTreeMap<String, String>,
}

impl Image {
    /// An image without files, which runs as root. Name and tag as a manifest names it: `sluice-agent`, `0.1.0`.
    pub fn new(name: &str, tag: &str) -> Self {
        Self {
            name: name.to_owned(),
            tag: tag.to_owned(),
            files: BTreeMap::new(),
            entrypoint: Vec::new(),
            user: "0:0".to_owned(),
            labels: BTreeMap::new(),
        }
    }

    /// An image of one static program, which becomes `/usr/bin/<its file's name>` and the entrypoint. An error if the
    /// program is not static: the image has no loader and no library for it.
    pub fn of_program(name: &str, tag: &str, program: &Path) -> Result<Self> {
        let shown = program.display();
        let bytes = fs::read(program).with_context(|| format!("cannot read {shown}"))?;
        ensure!(
            is_static(&bytes),
            "{shown} is no static program, and an image has no loader: build it with `-C target-feature=+crt-static` \
             (Rust) or CGO_ENABLED=0 (Go)"
        );
        let file = program.file_name().and_then(|name| name.to_str()).context("a program's name in UTF-8")?;
        let path = format!("/usr/bin/{file}");
        Ok(Self::new(name, tag).file(&path, bytes, 0o755).entrypoint(&[&path]))
    }

    /// A file, owned by root, at an absolute path. Its folders come with it.
    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.files.insert(path.to_owned(), (content.into(), mode));
        self
    }

    /// What a container runs, before its own arguments.
    pub fn entrypoint(mut self, command: &[&str]) -> Self {
        self.entrypoint = command.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// Whom it runs as, by numbers (`65532:65532`), so that `runAsNonRoot` can be checked.
    pub fn user(mut self, user: &str) -> Self {
        self.user = user.to_owned();
        self
    }

    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// `name:tag`, as a Pod names it.
    pub fn reference(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }

    /// Writes the archive; what was at this path is replaced in one step.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.archive().with_context(|| format!("cannot make the image {}", self.reference()))?;
        let draft = path.with_extension("draft");
        fs::write(&draft, bytes)
            .and_then(|()| fs::rename(&draft, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// What `docker save` writes: manifest.json, which names the configuration and the layers, and these.
    fn archive(&self) -> Result<Vec<u8>> {
        let layer = self.layer()?;
        let layer_digest = sha256(&layer);
        let config = self.config(&layer_digest).to_string().into_bytes();
        let (config_name, layer_name) = (format!("{}.json", sha256(&config)), format!("{layer_digest}.tar"));
        let manifest = json!([{"Config": config_name, "RepoTags": [self.reference()], "Layers": [layer_name]}]);
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in
            [("manifest.json", manifest.to_string().as_bytes()), (&config_name, &config), (&layer_name, &layer)]
        {
            append(&mut archive, name, content, 0o644)?;
        }
        Ok(archive.into_inner()?)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut folders = BTreeSet::new();
        for path in self.files.keys() {
            let inner = path.strip_prefix('/').filter(|inner| !inner.is_empty() && !inner.ends_with('/'));
            let inner = inner.with_context(|| format!("a file of an image needs an absolute path, not {path:?}"))?;
            folders.extend(inner.match_indices('/').map(|(end, _)| &inner[..=end]));
        }
        let mut layer = tar::Builder::new(Vec::new());
        // Sorted, so that each folder comes before what is in it.
        for folder in folders {
            append(&mut layer, folder, &[], 0o755)?;
        }
        for (path, (content, mode)) in &self.files {
            append(&mut layer, &path[1..], content, *mode)?;
        }
        Ok(layer.into_inner()?)
    }

    /// The image configuration (OCI image specification, config.md).
    fn config(&self, layer_digest: &str) -> Value {
        json!({
            "created": CREATED,
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": ["PATH=/usr/bin"],
                "Entrypoint": self.entrypoint,
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            // The layer is not compressed, so its own digest is also that of its content.
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
            "history": [{"created": CREATED, "created_by": "cargo xtask image"}],
        })
    }
}

/// One entry; a folder if the path ends with `/`.
fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    // A new header has root as its owner and 0 as its time.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, path, content).with_context(|| format!("cannot pack {path}"))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's architecture in Go's spelling, which images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether this is an executable that asks for no loader: 64-bit ELF, little endian, without PT_INTERP (elf(5)).
fn is_static(file: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |at: u64, width: u64| -> Option<u64> {
        let bytes = file.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(width)?).ok()?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let asks_for_none = |(table, width, count): (u64, u64, u64)| {
        (0..count).all(|index| number(table.saturating_add(index * width), 4).is_some_and(|kind| kind != PT_INTERP))
    };
    file.starts_with(b"\x7fELF\x02\x01") && headers().is_some_and(asks_for_none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn entries(archive: &[u8]) -> Vec<(String, u32, u64, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let header = entry.header();
            let path = header.path().unwrap().to_str().unwrap().to_owned();
            (path, header.mode().unwrap(), header.mtime().unwrap(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    fn sample() -> Image {
        Image::new("sample", "1.2")
            .file("/usr/bin/sample", "program", 0o755)
            .file("/etc/sample/config", "text", 0o644)
            .entrypoint(&["/usr/bin/sample", "run"])
            .user("65532:65532")
            .label("org.opencontainers.image.version", "1.2")
    }

    #[test]
    fn the_same_input_is_the_same_archive_and_other_input_another() {
        let swapped = Image::new("sample", "1.2")
            .label("org.opencontainers.image.version", "1.2")
            .user("65532:65532")
            .entrypoint(&["/usr/bin/sample", "run"])
            .file("/etc/sample/config", "text", 0o644)
            .file("/usr/bin/sample", "program", 0o755);
        assert_eq!(sample().archive().unwrap(), swapped.archive().unwrap());
        assert_ne!(sample().archive().unwrap(), sample().file("/x", "", 0o644).archive().unwrap());
        assert_ne!(sample().archive().unwrap(), sample().label("x", "y").archive().unwrap());
    }

    #[test]
    fn the_manifest_leads_to_the_configuration_and_that_to_the_layer() {
        let archive = entries(&sample().archive().unwrap());
        let content = |name: &Value| {
            let (.., content) = archive.iter().find(|(path, ..)| *path == name.as_str().unwrap()).unwrap();
            content
        };
        let manifest: Value = serde_json::from_slice(content(&json!("manifest.json"))).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["sample:1.2"]));
        let layer = content(&manifest[0]["Layers"][0]);
        let config: Value = serde_json::from_slice(content(&manifest[0]["Config"])).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", sha256(layer))]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/sample", "run"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Labels"], json!({"org.opencontainers.image.version": "1.2"}));
        assert!(["amd64", "arm64"].contains(&config["architecture"].as_str().unwrap()));
    }

    #[test]
    fn folders_come_before_their_files_and_nothing_carries_a_time() {
        let layer = entries(&sample().layer().unwrap());
        let seen: Vec<_> = layer.iter().map(|(path, mode, ..)| (path.as_str(), *mode)).collect();
        let folders = [("etc/", 0o755), ("etc/sample/", 0o755), ("usr/", 0o755), ("usr/bin/", 0o755)];
        let files = [("etc/sample/config", 0o644), ("usr/bin/sample", 0o755)];
        assert_eq!(seen, [&folders[..], &files[..]].concat());
        assert!(layer.iter().all(|(_, _, time, _)| *time == 0));
        assert_eq!(layer.last().unwrap().3, b"program");
    }

    #[test]
    fn a_path_that_is_not_absolute_is_refused() {
        for path in ["usr/bin/x", "/", "", "/usr/"] {
            let error = Image::new("x", "1").file(path, "", 0o644).archive().unwrap_err();
            assert!(format!("{error:#}").contains("absolute path"), "{path}: {error:#}");
        }
    }

    #[test]
    fn a_program_that_needs_a_loader_is_refused_with_the_cure() {
        // Cargo links tests dynamically.
        let own = std::env::current_exe().unwrap();
        let error = Image::of_program("x", "1", &own).unwrap_err().to_string();
        assert!(error.contains("+crt-static"), "{error}");
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02\x01"), "cut off");
        // An ELF header alone that says: no program headers.
        let mut bare = b"\x7fELF\x02\x01".to_vec();
        bare.resize(64, 0);
        assert!(is_static(&bare));
    }
}
