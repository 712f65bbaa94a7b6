//! Each target for a moment: what fuzzing found once, the corpus, mutations of both, and bytes of chance. The same bytes
//! each time. What fails is written down: name the file to play it again.

use std::fs;
use std::path::{Path, PathBuf};

use sluice_fuzz::chance;
use sluice_fuzz::{TARGETS, Target};

fn folder(kind: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target.name)
}

/// A folder's files in the order of their names.
fn inputs(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder's entry").path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))).collect()
}

/// One input changed in some places, as libFuzzer does it.
fn mutate(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>], longest: usize) {
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(0..=bytes.len());
        match rng.u8(0..6) {
            0 | 1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            3 => bytes.insert(at, rng.u8(..)),
            4 => drop(bytes.drain(at..bytes.len().min(at + rng.usize(0..8)))),
            _ => {
                let other = &others[rng.usize(..others.len())];
                let from = rng.usize(0..=other.len());
                let piece = &other[from..other.len().min(from + rng.usize(0..100))];
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
    bytes.truncate(longest);
}

/// Writes the input of a run that panics to a file.
struct Run<'a> {
    target: &'a Target,
    bytes: &'a [u8],
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let file = folder.join(format!("{}-failed", self.target.name));
            let written = fs::write(&file, self.bytes);
            eprintln!("{:?}: the input is in {}", written, file.display());
        }
    }
}

fn run(target: &Target, bytes: &[u8]) {
    let run = Run { target, bytes };
    (target.run)(run.bytes);
}

fn short(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target's name");
    let mut known = inputs(&folder("found", target));
    known.extend(inputs(&folder("corpus", target)));
    assert!(!known.is_empty(), "{name} has no corpus");
    known.iter().for_each(|bytes| run(target, bytes));
    for seed in 0..target.short / 2 {
        run(target, &chance::random(seed, target.longest));
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = known[rng.usize(..known.len())].clone();
        mutate(&mut rng, &mut bytes, &known, target.longest);
        run(target, &bytes);
    }
}

#[test]
fn detection_decides_once() {
    short("detect");
}

#[test]
fn header_blocks_are_read_as_another_implementation_reads_them() {
    short("hpack-decode");
}

#[test]
fn what_header_blocks_mean_survives_translation() {
    short("hpack-translate");
}

#[test]
fn however_bytes_are_cut_the_splitter_writes_the_same() {
    short("frames");
}

#[test]
fn any_file_is_objects_or_a_problem() {
    short("yaml");
}

#[test]
fn any_annotation_is_understood_or_a_problem() {
    short("annotations");
}

#[test]
fn whatever_peers_do_streams_keep_their_meaning_and_end() {
    short("splitter");
}

#[test]
fn every_target_is_run() {
    let own = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/short.rs")).expect("this file");
    for target in TARGETS {
        assert!(own.contains(&format!("short(\"{}\")", target.name)), "{} is not run", target.name);
    }
}
