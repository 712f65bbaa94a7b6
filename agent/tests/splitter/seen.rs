//! Promises about what is counted of calls, and what somebody who looks gets to see of them.

use std::time::Duration;

use sluice_agent::calls::{CODES, MethodName};
use sluice_agent::splitter::{Depth, TapEvent};

use crate::script::{Peer, Script, and};
use crate::wire::*;

const ALL: Depth = Depth { share: 1.0, metadata: true, frames: false };

fn script() -> Script {
    Script::with(Default::default(), 1)
}

/// How calls ended so far, by name, each as often as it did.
fn codes(s: &Script) -> Vec<String> {
    let report = s.world.service.calls().report();
    let mut codes = Vec::new();
    for (name, counts) in report.methods {
        let method = if name == MethodName::Other { "other " } else { "" };
        for (code, times) in CODES.iter().zip(counts.grpc) {
            codes.extend((0..times).map(|_| format!("{method}{code}")));
        }
        for (class, times) in counts.http.iter().enumerate() {
            codes.extend((0..*times).map(|_| format!("http {class}")));
        }
    }
    codes.sort();
    codes
}

/// A whole answer with this status.
fn answer(s: &mut Script, server: &Peer, stream: u32, status: &str) {
    let frames =
        [headers(stream, MORE, OK), data(stream, MORE, b"1234567"), headers(stream, END, &[("grpc-status", status)])];
    s.send(server, frames.concat());
}

#[test]
fn a_call_counts_by_the_status_that_its_client_hears_wherever_it_came_from() {
    let mut s = script();
    let client = s.client();
    let call = |s: &mut Script, stream: u32, end: bool| s.send(&client, headers(stream, end, CALL));
    call(&mut s, 1, END);
    let server = s.server();
    answer(&mut s, &server, 1, "5");
    assert_eq!(codes(&s), ["NOT_FOUND"], "in trailers");
    call(&mut s, 3, END);
    s.send(&server, headers(3, END, &and(OK, &[("grpc-status", "14")])));
    call(&mut s, 5, END);
    s.send(&server, reset(5, ENHANCE_YOUR_CALM));
    call(&mut s, 7, MORE);
    s.send(&client, reset(7, CANCEL));
    call(&mut s, 9, END);
    s.send(&server, headers(9, END, OK));
    let all = ["CANCELLED", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"];
    assert_eq!(codes(&s), all, "Trailers-Only, a reset, a cancel, and a 200 without a grpc-status");
    s.send(&client, headers(11, END, PLAIN));
    s.send(&server, headers(11, END, &[(":status", "404")]));
    call(&mut s, 13, END);
    assert_eq!(s.world.service.calls().report().open, 1);
    drop(server);
    s.run();
    let mut expected = [&all[..], &["UNAVAILABLE", "http 4"]].concat();
    expected.sort_unstable();
    assert_eq!(codes(&s), expected, "HTTP, and a lost connection");
    let report = s.world.service.calls().report();
    assert_eq!((report.open, report.response_bytes), (0, 7));
}

#[test]
fn a_call_given_up_when_its_deadline_is_over_has_exceeded_it() {
    let mut s = script();
    let client = s.client();
    s.send(&client, headers(1, END, &and(CALL, &[("grpc-timeout", "1S")])));
    let _server = s.server();
    s.pass(Duration::from_secs(1));
    s.send(&client, reset(1, CANCEL));
    assert_eq!(codes(&s), ["other DEADLINE_EXCEEDED"], "no endpoint has shown that it knows the method");
}

#[test]
fn who_looks_sees_a_call_from_its_head_to_its_end_with_secrets_hidden_and_nothing_afterwards() {
    let mut s = script();
    s.world.splitter.tap(Some(ALL));
    let client = s.client();
    let traced =
        [("authorization", "Bearer x"), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
    s.send(&client, headers(1, MORE, &and(CALL, &traced)));
    s.send(&client, data(1, END, b"123"));
    let mut server = s.server();
    answer(&mut s, &server, 1, "0");
    let mut events = Vec::new();
    while let Some(event) = s.world.splitter.poll_tap() {
        events.push(event);
    }
    let [
        TapEvent::Request { path, metadata, .. },
        TapEvent::Response { status: 200, endpoint: Some(_), .. },
        TapEvent::Trailers { metadata: trailers, .. },
        TapEvent::End(end),
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!(path, "/pkg.Svc/Do");
    let value = |name: &str| metadata.iter().find(|field| field.name == name).map(|field| &*field.value);
    assert_eq!((value("authorization"), value("traceparent")), (Some("(hidden, 8 bytes)"), Some(traced[1].1)));
    assert_eq!((&*trailers[0].name, &*trailers[0].value), ("grpc-status", "0"));
    assert_eq!((end.request_bytes, end.response_bytes, end.attempts), (3, 7, 1));
    assert_eq!(end.ended.name(), "OK");
    // The endpoint got all of it as it was.
    let heard = server.got();
    assert_eq!(heard[0], heard_fields(1, &and(CALL, &traced)));
    s.world.splitter.tap(None);
    s.send(&client, headers(3, END, CALL));
    answer(&mut s, &server, 3, "0");
    assert!(s.world.splitter.poll_tap().is_none());
}

#[test]
fn who_looks_sees_what_we_answer_ourselves_and_why() {
    let mut s = script();
    s.refuse(1);
    s.world.splitter.tap(Some(ALL));
    let client = s.client();
    s.send(&client, headers(1, END, CALL));
    s.run();
    let mut events = Vec::new();
    while let Some(event) = s.world.splitter.poll_tap() {
        events.push(event);
    }
    let [
        TapEvent::Request { .. },
        TapEvent::Response { status: 200, endpoint: None, metadata, .. },
        TapEvent::End(end),
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    let why = metadata.iter().find(|field| field.name == "grpc-message").map(|field| &*field.value);
    assert_eq!(why, Some("no endpoint could be reached"));
    assert_eq!(end.ended.name(), "UNAVAILABLE");
}

fn heard_fields(stream: u32, fields: Fields<'_>) -> Got {
    heard(stream, MORE, fields)
}

#[test]
fn frames_are_seen_on_both_sides_in_their_order_with_the_call_they_belong_to() {
    let mut s = script();
    s.world.splitter.tap(Some(Depth { frames: true, ..ALL }));
    let client = s.client();
    s.send(&client, headers(1, END, CALL));
    let server = s.server();
    answer(&mut s, &server, 1, "0");
    let mut seen = Vec::new();
    while let Some(event) = s.world.splitter.poll_tap() {
        if let TapEvent::Frame(frame) = event
            && frame.stream != 0
        {
            assert_eq!(frame.call, Some(1), "{frame:?}");
            let way = match (frame.client, frame.received) {
                (true, true) => "client>",
                (true, false) => ">client",
                (false, true) => "endpoint>",
                (false, false) => ">endpoint",
            };
            seen.push(format!("{way} {} {} {}", frame.kind_name(), frame.stream, frame.flag_names().join("+")));
        }
    }
    assert_eq!(
        seen,
        [
            "client> HEADERS 1 END_STREAM+END_HEADERS",
            ">endpoint HEADERS 1 END_STREAM+END_HEADERS",
            "endpoint> HEADERS 1 END_HEADERS",
            "endpoint> DATA 1 ",
            "endpoint> HEADERS 1 END_STREAM+END_HEADERS",
            ">client HEADERS 1 END_HEADERS",
            ">client DATA 1 ",
            ">client HEADERS 1 END_STREAM+END_HEADERS",
        ]
    );
}

#[test]
fn what_nobody_takes_in_time_is_counted_and_takes_no_memory() {
    let mut s = script();
    s.world.splitter.tap(Some(ALL));
    let client = s.client();
    let large = "x".repeat(10_000);
    for n in 0..2_000 {
        s.send(&client, headers(2 * n + 1, MORE, &and(CALL, &[("x-large", &large)])));
        s.send(&client, reset(2 * n + 1, CANCEL));
        s.pass(Duration::from_millis(20));
    }
    let (mut kept, mut bytes, mut lost) = (0, 0, 0);
    while let Some(event) = s.world.splitter.poll_tap() {
        match event {
            TapEvent::Lost(count) => lost += count,
            TapEvent::Request { metadata, .. } => {
                kept += 1;
                bytes += metadata.iter().map(|field| field.name.len() + field.value.len()).sum::<usize>();
            }
            _ => kept += 1,
        }
    }
    assert!(bytes <= 1 << 20 && lost > 0, "{bytes} {lost}");
    assert_eq!(kept + lost, 4_000);
}
