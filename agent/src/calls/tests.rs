//! Counting calls: what is told apart, and that clients cannot make it grow.

use std::time::Duration;

use super::*;

fn call(calls: &Calls, path: &str, ended: Ended) {
    let now = Instant::now();
    let mut call = calls.begin(now, Some(path.as_bytes()));
    call.ends(ended);
    calls.end(now + Duration::from_millis(3), call, 10, 20);
}

fn counted(calls: &Calls) -> Vec<(String, u64)> {
    let mut report = CallsReport::default();
    report.add(calls.report());
    report.methods.iter().map(|(name, counts)| (name.to_string(), counts.total())).collect()
}

#[test]
fn a_call_counts_once_for_its_method_and_by_how_it_ended() {
    let (calls, now) = (Calls::default(), Instant::now());
    let mut first = calls.begin(now, Some(b"/shop.Cart/Add"));
    let plain = calls.begin(now, None);
    assert_eq!(calls.report().open, 2);
    first.ends(Ended::of_grpc(b"5"));
    first.ends(Ended::CANCELLED);
    calls.end(now + Duration::from_millis(4), first, 100, 7);
    calls.end(now, plain, 1, 1);
    let report = calls.report();
    assert_eq!((report.open, report.request_bytes, report.response_bytes), (0, 101, 8));
    let (name, counts) = report.methods.iter().find(|(name, _)| *name != MethodName::Http).unwrap();
    assert_eq!(name.parts(), ("shop.Cart", "Add"));
    assert_eq!((counts.grpc[5], counts.total(), counts.failed), (1, 1, 0), "the first word counts");
    assert!((counts.duration.seconds() - 0.004).abs() < 1e-9);
    let (_, plain) = report.methods.iter().find(|(name, _)| *name == MethodName::Http).unwrap();
    assert_eq!(plain.http[0], 1, "ended without an answer");
}

#[test]
fn only_methods_that_an_endpoint_knows_get_a_name_and_only_so_many() {
    let calls = Calls::default();
    call(&calls, "/a.B/Made_up", Ended::of_grpc(b"12"));
    call(&calls, "/a.B/Unreached", Ended::grpc(14));
    for odd in ["/", "//", "/a", "a.B/C", "/a.B/C?x=1", "/a.B/\u{e9}", &format!("/{}/x", "a".repeat(200))] {
        call(&calls, odd, Ended::of_grpc(b"0"));
    }
    assert_eq!(counted(&calls), [("(other methods)".to_owned(), 9)]);
    for n in 0..2 * METHODS {
        call(&calls, &format!("/a.B/M{n}"), Ended::of_grpc(b"0"));
    }
    assert_eq!(counted(&calls).len(), METHODS + 1);
    assert_eq!(counted(&calls).last().unwrap().1, 9 + METHODS as u64);
}

#[test]
fn reports_of_workers_add_up_by_method() {
    let (one, two) = (Calls::default(), Calls::default());
    ["/a.B/C", "/a.B/C", "/a.B/D"].iter().for_each(|path| call(&one, path, Ended::of_grpc(b"0")));
    ["/a.B/D", "/a.B/E"].iter().for_each(|path| call(&two, path, Ended::of_grpc(b"13")));
    let mut sum = CallsReport::default();
    sum.add(one.report());
    sum.add(two.report());
    let methods: Vec<_> = sum.methods.iter().map(|(name, counts)| (name.to_string(), counts.total())).collect();
    assert_eq!(methods, [("a.B/C".to_owned(), 2), ("a.B/D".to_owned(), 2), ("a.B/E".to_owned(), 1)]);
    assert_eq!((sum.methods[1].1.grpc[13], sum.methods[1].1.failed), (1, 1));
    assert_eq!(sum.request_bytes, 50);
}

#[test]
fn a_status_is_what_the_client_reports() {
    let code = |ended| match ended {
        Ended::Grpc { code, .. } => code_name(code),
        Ended::Http(_) => "http",
    };
    assert_eq!(code(Ended::of_grpc(b"14")), "UNAVAILABLE");
    assert_eq!((code(Ended::of_grpc(b"17")), code(Ended::of_grpc(b"x"))), ("UNKNOWN", "UNKNOWN"));
    assert_eq!((code(Ended::of_http(503)), code(Ended::of_http(404))), ("UNAVAILABLE", "UNIMPLEMENTED"));
    assert_eq!((code(Ended::of_reset(7)), code(Ended::of_reset(2))), ("UNAVAILABLE", "INTERNAL"));
    assert_eq!((code(Ended::of_reset(8)), code(Ended::of_reset(0xb))), ("CANCELLED", "RESOURCE_EXHAUSTED"));
}

#[test]
fn a_limit_on_the_way_is_a_failure_and_an_applications_quota_is_none() {
    assert!(Ended::of_own(b"8").is_failure() && Ended::of_reset(0xb).is_failure());
    assert!(!Ended::of_grpc(b"8").is_failure());
}
