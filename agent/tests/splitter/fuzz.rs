//! [`case`](crate::case) in a short run: cases of chance, and what fuzzing has found. `SLUICE_SEED=N` plays one case
//! again, `SLUICE_CASES=N` plays more of them. Guided by coverage: `cargo xtask fuzz splitter`.

use crate::case;
use crate::chance;

/// Bytes of a case at most: some hundred acts.
const LONGEST: usize = 1_500;

fn seeds(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("SLUICE_SEED"), number("SLUICE_CASES")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(cases)) => 0..cases.max(range.end),
        (None, None) => range,
    }
}

/// Prints the seed of a case that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("play it again with SLUICE_SEED={}", self.0);
        }
    }
}

fn play(seed: u64) -> u64 {
    let seed = Seed(seed);
    case::play(&chance::random(seed.0, LONGEST))
}

#[test]
fn whatever_the_peers_do_nothing_is_left_when_they_have_gone() {
    for seed in seeds(0..3_000) {
        play(seed);
    }
}

#[test]
fn the_same_bytes_give_the_same_outputs_byte_for_byte() {
    for seed in seeds(0..50) {
        assert_eq!(play(seed), play(seed), "seed {seed}");
    }
}

#[test]
fn nothing_that_passes_is_changed_by_somebody_who_looks() {
    let mut seen = 0;
    for seed in seeds(0..300) {
        let bytes = chance::random(Seed(seed).0, LONGEST);
        let (digest, ended) = case::play_watched(&bytes);
        assert_eq!(digest, case::play(&bytes), "seed {seed}");
        seen += ended;
    }
    assert!(seen > 0, "no call was seen");
}
