//! Detection: once the first bytes have decided, no later byte decides otherwise, and what has not decided is a beginning
//! of what could.

use std::time::Instant;

use sluice_agent::detect::{Detection, PREFACE, Patience, Step, Verdict, client, server};

/// The first byte chooses how much of the preface comes before the others.
pub fn target(bytes: &[u8]) {
    let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let told = [&PREFACE[..usize::from(*first) % (PREFACE.len() + 1)], rest].concat();
    for bytes in [rest, &told] {
        decided_once(client, bytes);
        decided_once(server, bytes);
        assert_eq!(client(bytes) == Verdict::Http2, bytes.starts_with(PREFACE), "{bytes:?}");
        assert_eq!(client(bytes) == Verdict::NeedMore, bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes));
        in_time(bytes);
    }
}

fn decided_once(judge: fn(&[u8]) -> Verdict, bytes: &[u8]) {
    let mut before = Verdict::NeedMore;
    for length in 0..=bytes.len() {
        let verdict = judge(&bytes[..length]);
        assert!(before == Verdict::NeedMore || before == verdict, "{before:?}, then {verdict:?}: {bytes:?}");
        before = verdict;
    }
}

/// Byte by byte, and each deadline waited for: it ends.
fn in_time(bytes: &[u8]) {
    let mut now = Instant::now();
    let mut detection = Detection::new(now, Patience::default());
    for length in 1..=bytes.len() {
        match (detection.handle_client(now, &bytes[..length]), client(&bytes[..length])) {
            (Step::Wait, Verdict::NeedMore) => {}
            (Step::Http2, Verdict::Http2) | (Step::Opaque, Verdict::Opaque) => return,
            (step, verdict) => panic!("{step:?} where the bytes say {verdict:?}"),
        }
    }
    for _ in 0..2 {
        let Some(deadline) = detection.deadline() else { return };
        now = deadline;
        if detection.handle_deadline(now) == Step::Opaque {
            return;
        }
    }
    assert_eq!(detection.deadline(), None, "it waits for ever, again and again");
}
