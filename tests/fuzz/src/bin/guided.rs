//! What libFuzzer drives: bytes in, into the target that `SLUICE_FUZZ_TARGET` names. It is built by `cargo xtask fuzz`.

#![no_main]

use std::sync::OnceLock;

use sluice_fuzz::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("SLUICE_FUZZ_TARGET").expect("SLUICE_FUZZ_TARGET: run this by `cargo xtask fuzz`");
        let target = TARGETS.iter().find(|target| target.name == name).expect("a target's name");
        TARGET.get_or_init(|| target);
    },
    |bytes: &[u8]| {
        let target = TARGET.get().expect("set at the start");
        (target.run)(&bytes[..bytes.len().min(target.longest)]);
    }
);
