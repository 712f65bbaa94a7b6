//! Generated calls. In: a seed and a number; out: always the same shape. Every shape ends however its steps interleave, and
//! what both sides hear follows from it alone, but for what shapes that race say.

use fastrand::Rng;

use crate::draft::{CODES, Draft, message};
use crate::metadata::{custom, field, grpc_response, request};
use crate::shape::{Shape, Step};
use crate::wire::choose;

const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
type Pattern = fn(&mut Draft) -> &'static str;

/// Equally often; those named twice have more variety in them.
const PATTERNS: &[Pattern] = &[
    unary,
    unary,
    client_stream,
    server_stream,
    ping_pong,
    both_at_once,
    trailers_only,
    early_end,
    early_end,
    early_end_and_reset,
    cancel_after_messages,
    cancel_after_messages,
    cancel_after_end,
    cancel_at_once,
    client_resets,
    server_resets,
    server_resets,
    server_refuses,
    deadline,
    plain_http,
    plain_http,
    informational,
    no_trailers,
    request_trailers,
];

pub fn shape(seed: u64, number: u32) -> Shape {
    // Neighbouring numbers shall have nothing in common.
    let rng = Rng::with_seed(seed.wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut draft = Draft { rng, number, client: Vec::new(), server: Vec::new(), racing: false, refused: false };
    let name = choose(&mut draft.rng, PATTERNS)(&mut draft);
    let mut shape = Shape::new(number, name, draft.client, draft.server);
    (shape.racing, shape.refused) = (draft.racing, draft.refused);
    shape
}

fn unary(draft: &mut Draft) -> &'static str {
    draft.open();
    let size = draft.large();
    let early_head = draft.rng.u8(..4) == 0;
    if early_head {
        draft.respond();
    }
    draft.client.push(message(size));
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    if !early_head {
        draft.respond();
    }
    let size = draft.large();
    draft.server.push(message(size));
    draft.trailers();
    "unary"
}

fn client_stream(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(12);
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    draft.respond();
    draft.server_messages(1);
    draft.trailers();
    "client stream"
}

fn server_stream(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(1);
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    draft.respond();
    draft.server_messages(20);
    draft.trailers();
    "server stream"
}

fn ping_pong(draft: &mut Draft) -> &'static str {
    draft.open();
    if draft.rng.bool() {
        draft.respond();
        draft.client.push(Step::AwaitSections(1));
    } else {
        draft.client_messages(1);
        draft.await_client();
        draft.respond();
    }
    for _ in 0..draft.rng.u8(..8) {
        draft.client_messages(2);
        draft.await_client();
        draft.server_messages(2);
        draft.await_server();
    }
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    draft.trailers();
    "ping-pong"
}

fn both_at_once(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.respond();
    draft.client_messages(15);
    draft.server_messages(15);
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    draft.trailers();
    "both at once"
}

fn trailers_only(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(2);
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    draft.only_trailers();
    "trailers only"
}

/// The server has done before the client has half-closed; the client goes on to the end all the same.
fn early_end(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(3);
    draft.await_client();
    draft.respond_in_any_way();
    draft.client.push(Step::AwaitEnd);
    draft.client_messages(3);
    draft.half_close();
    "early end, the client goes on"
}

/// The server has done, and says that it wants no more (RFC 9113 §8.1).
fn early_end_and_reset(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(3);
    draft.await_client();
    draft.respond_in_any_way();
    draft.server.push(Step::Reset(NO_ERROR));
    if draft.rng.bool() {
        draft.client_messages(6);
    }
    draft.client.push(Step::AwaitReset);
    "early end, then NO_ERROR"
}

/// Often with more messages under way, which nobody will read.
fn cancel_after_messages(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(2);
    let half_closed = draft.rng.bool();
    if half_closed {
        draft.half_close();
        draft.server.push(Step::AwaitEnd);
    } else {
        draft.await_client();
    }
    draft.respond();
    draft.server_messages(5);
    draft.await_server();
    if draft.rng.bool() {
        draft.server_messages(8);
    }
    draft.server.push(Step::AwaitReset);
    let code = draft.cancel_code();
    draft.client.push(Step::Reset(code));
    "cancel after messages"
}

/// The response has ended, the request has not: the client gives it up, as gRPC clients do.
fn cancel_after_end(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(3);
    draft.await_client();
    draft.respond_in_any_way();
    draft.client.push(Step::AwaitEnd);
    let code = *choose(&mut draft.rng, &[CANCEL, NO_ERROR]);
    draft.client.push(Step::Reset(code));
    "cancel after the response's end"
}

fn cancel_at_once(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.server.push(Step::AwaitReset);
    draft.client.push(Step::Reset(CANCEL));
    draft.racing = true;
    "cancel at once"
}

fn client_resets(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(6);
    draft.racing = draft.rng.bool();
    if draft.racing {
        draft.server.push(Step::AwaitReset);
    } else {
        draft.await_client();
        draft.respond();
        draft.client.push(Step::AwaitSections(1));
        draft.server.push(Step::AwaitReset);
    }
    let code = draft.cancel_code();
    draft.client.push(Step::Reset(code));
    if draft.racing { "reset by the client, unheard" } else { "reset by the client" }
}

fn server_resets(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(4);
    draft.await_client();
    let name = match draft.rng.u8(..3) {
        0 => "reset by the server, no response",
        1 => {
            draft.respond();
            draft.server_messages(4);
            draft.racing = true;
            "reset by the server, unheard"
        }
        _ => {
            draft.respond();
            draft.server_messages(4);
            draft.client.push(Step::AwaitSections(1));
            draft.await_server();
            draft.client.push(message(1));
            draft.await_client();
            "reset by the server"
        }
    };
    let code = *choose(&mut draft.rng, CODES);
    draft.server.push(Step::Reset(code));
    draft.client.push(Step::AwaitReset);
    name
}

fn server_refuses(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(1);
    draft.server.push(Step::Reset(REFUSED_STREAM));
    draft.client.push(Step::AwaitReset);
    draft.refused = true;
    "refused"
}

fn deadline(draft: &mut Draft) -> &'static str {
    draft.open();
    let millis = draft.rng.u64(1..30);
    if let Some(Step::Headers { fields, .. }) = draft.client.first_mut() {
        fields.retain(|field| field.name != b"grpc-timeout");
        fields.push(field("grpc-timeout", format!("{millis}m")));
    }
    draft.client_messages(2);
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    match draft.rng.u8(..3) {
        0 => {
            draft.server.push(Step::Pause { millis });
            let mut fields = grpc_response(&mut draft.rng);
            fields.extend([field("grpc-status", "4"), field("grpc-message", "too late")]);
            draft.server.push(Step::Headers { fields, end: true });
            "deadline, the server's"
        }
        1 => {
            draft.server.push(Step::AwaitReset);
            draft.client.extend([Step::Pause { millis }, Step::Reset(CANCEL)]);
            draft.racing = true;
            "deadline, the client's, unheard"
        }
        _ => {
            draft.respond();
            draft.server_messages(3);
            draft.server.push(Step::AwaitReset);
            draft.client.push(Step::AwaitSections(1));
            draft.await_server();
            draft.client.extend([Step::Pause { millis }, Step::Reset(CANCEL)]);
            "deadline, the client's"
        }
    }
}

fn plain_http(draft: &mut Draft) -> &'static str {
    let rng = &mut draft.rng;
    let (method, path) = *choose(
        rng,
        &[("GET", "/"), ("HEAD", "/a/b"), ("PUT", "/up?x=%2F"), ("DELETE", "/d"), ("OPTIONS", "*"), ("POST", "/form")],
    );
    let mut fields = request(rng, method, path, draft.number);
    fields.extend(custom(rng));
    let size = if matches!(method, "PUT" | "POST") { *choose(rng, &[0, 1, 500, 70_000]) } else { 0 };
    if size > 0 && rng.bool() {
        fields.push(field("content-length", size.to_string()));
    }
    let bare = size == 0 && rng.bool();
    draft.client.push(Step::Headers { fields, end: bare });
    if !bare {
        draft.client.push(Step::Raw { size, end: true });
    }
    let (status, size) = *choose(
        rng,
        &[
            ("200", 0),
            ("200", 1),
            ("200", 40_000),
            ("206", 10),
            ("204", 0),
            ("304", 0),
            ("301", 0),
            ("404", 12),
            ("500", 3),
            ("503", 300),
        ],
    );
    let mut fields = vec![field(":status", status), field("content-type", "text/html; charset=utf-8")];
    if status != "204" && rng.bool() {
        fields.push(field("content-length", size.to_string()));
    }
    fields.extend(custom(rng));
    draft.server.push(Step::AwaitEnd);
    let size = if method == "HEAD" { 0 } else { size };
    let bare = size == 0 && (method == "HEAD" || rng.bool());
    draft.server.push(Step::Headers { fields, end: bare });
    if !bare {
        draft.server.push(Step::Raw { size, end: true });
    }
    "plain HTTP"
}

/// One or two interim responses; for `expect`, the client waits for the first.
fn informational(draft: &mut Draft) -> &'static str {
    draft.open();
    let expects = draft.rng.bool();
    if expects && let Some(Step::Headers { fields, .. }) = draft.client.first_mut() {
        fields.push(field("expect", "100-continue"));
        draft.server.push(Step::Headers { fields: vec![field(":status", "100")], end: false });
        draft.client.push(Step::AwaitSections(1));
    }
    draft.client_messages(2);
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    for _ in 0..draft.rng.u8(1..3) {
        let mut fields = vec![field(":status", "103"), field("link", "</style.css>; rel=preload")];
        fields.extend(custom(&mut draft.rng));
        draft.server.push(Step::Headers { fields, end: false });
    }
    draft.respond();
    draft.server_messages(3);
    draft.trailers();
    "interim responses"
}

/// A response that ends with its data: for a gRPC client an error of its own making.
fn no_trailers(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(2);
    draft.half_close();
    draft.server.push(Step::AwaitEnd);
    draft.respond();
    draft.server_messages(2);
    let size = *choose(&mut draft.rng, &[0, 0, 3, 20_000]);
    draft.server.push(Step::Raw { size, end: true });
    "no trailers"
}

fn request_trailers(draft: &mut Draft) -> &'static str {
    draft.open();
    draft.client_messages(4);
    let mut fields = vec![field("x-checksum", "abc")];
    fields.extend(custom(&mut draft.rng));
    draft.client.push(Step::Headers { fields, end: true });
    draft.server.push(Step::AwaitEnd);
    draft.respond();
    draft.trailers();
    "trailers of the request"
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::shape::Side;

    /// Plays a shape with everything arriving at once; whether both sides come to their end.
    fn ends(shape: &Shape) -> bool {
        let mut next = [0, 0];
        let done = |side: Side, next: [usize; 2]| &shape.steps(side)[..next[side as usize]];
        let is_end = |step: &Step| {
            matches!(
                step,
                Step::Headers { end: true, .. } | Step::Message { end: true, .. } | Step::Raw { end: true, .. }
            )
        };
        let reset = |side, next| done(side, next).iter().any(|step| matches!(step, Step::Reset(_)));
        loop {
            let before = next;
            for side in [Side::Client, Side::Server] {
                let other = done(side.other(), next);
                let may = match shape.steps(side).get(next[side as usize]) {
                    None => false,
                    Some(Step::AwaitSections(n)) => {
                        other.iter().filter(|step| matches!(step, Step::Headers { .. })).count() >= *n
                    }
                    Some(Step::AwaitBytes(n)) => other.iter().map(Step::bytes).sum::<usize>() >= *n,
                    Some(Step::AwaitEnd) => other.iter().any(is_end),
                    Some(Step::AwaitReset) => reset(side.other(), next),
                    Some(_) => true,
                };
                next[side as usize] += usize::from(may);
            }
            if next == before {
                let all_done = |side: Side| {
                    reset(side.other(), next)
                        || next[side as usize] == shape.steps(side).len()
                            && (reset(side, next) || done(side, next).iter().any(is_end))
                };
                return all_done(Side::Client) && all_done(Side::Server);
            }
        }
    }

    #[test]
    fn every_shape_comes_to_its_end() {
        for number in 0..5_000 {
            let shape = shape(1, number);
            assert!(ends(&shape), "{shape}");
        }
    }

    #[test]
    fn a_shape_is_the_same_whoever_asks_and_500_have_every_pattern() {
        let text = |number| shape(7, number).to_string();
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
        let patterns: BTreeSet<_> = (0..500).map(|number| shape(7, number).pattern).collect();
        let all: BTreeSet<_> = (0..20_000).map(|number| shape(7, number).pattern).collect();
        assert_eq!(patterns, all);
    }
}
