//! Fuzz targets: each one a function of bytes that panics where sluice does something wrong. In: bytes of any kind. Out:
//! nothing. The tests run each for a moment (`tests/short.rs`), `cargo xtask fuzz` as long as one likes, guided by
//! coverage. The splitter's world, its peers and their model are those of the splitter's own tests.

pub mod detect;
pub mod frames;
pub mod hpack;
pub mod objects;

#[path = "../../../agent/tests/splitter/actor.rs"]
pub mod actor;
#[path = "../../../agent/tests/splitter/case.rs"]
pub mod case;
#[path = "../../../agent/tests/splitter/chance.rs"]
pub mod chance;
#[path = "../../../agent/tests/splitter/model.rs"]
pub mod model;
#[path = "../../../agent/tests/splitter/script.rs"]
pub mod script;
#[path = "../../../agent/tests/splitter/wire.rs"]
pub mod wire;
#[path = "../../../agent/tests/splitter/world.rs"]
pub mod world;

/// A function to be tried with all kinds of bytes.
pub struct Target {
    /// Also of its folders in `corpus` and `found`.
    pub name: &'static str,
    /// Panics where something is wrong.
    pub run: fn(&[u8]),
    /// The longest input that is of use, bytes.
    pub longest: usize,
    /// Inputs in the short run: a second or two without optimisation.
    pub short: u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "detect", run: detect::target, longest: 64, short: 20_000 },
    Target { name: "hpack-decode", run: hpack::decode, longest: 1_024, short: 6_000 },
    Target { name: "hpack-translate", run: hpack::translate, longest: 1_024, short: 4_000 },
    Target { name: "frames", run: frames::target, longest: 1_024, short: 2_000 },
    Target { name: "yaml", run: objects::yaml, longest: 2_048, short: 2_000 },
    Target { name: "annotations", run: objects::annotations, longest: 256, short: 4_000 },
    Target { name: "splitter", run: splitter, longest: 1_500, short: 500 },
];

fn splitter(bytes: &[u8]) {
    case::play(bytes);
}
