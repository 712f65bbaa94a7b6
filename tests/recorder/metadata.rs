//! Header sections of generated calls: names in any order, duplicates, binary, empty and large values, bytes above ASCII,
//! never-indexed fields. All of it well-formed (RFC 9113 §8.2): what is malformed is no call.

use fastrand::Rng;

use crate::shape::NUMBER;
use crate::wire::{Field, choose};

/// Names an application uses, and some that an intermediary might wrongly take for its own.
const NAMES: &[&str] = &[
    "x-request-id",
    "x-trace-bin",
    "authorization",
    "cookie",
    "user-agent",
    "grpc-previous-rpc-attempts",
    "grpc-trace-bin",
    "x-b3-traceid",
    "accept",
    "via",
    "forwarded",
    "x-forwarded-for",
    "date",
    "server",
    "etag",
    "max-forwards",
    "priority",
    "alt-svc",
    "vary",
    "a",
    "x_under.score!#$%&'*+^`|~",
];

pub fn field(name: &str, value: impl AsRef<[u8]>) -> Field {
    Field { name: name.as_bytes().to_vec(), value: value.as_ref().to_vec(), secret: false }
}

/// A gRPC call's head, with whatever an application adds.
pub fn grpc_request(rng: &mut Rng, number: u32) -> Vec<Field> {
    let path = *choose(rng, &["/echo.Echo/Unary", "/pkg.v1.Some.Service/DoIt", "/x/y?query=1&a=%20"]);
    let mut fields = request(rng, "POST", path, number);
    fields.push(field(
        "content-type",
        choose(rng, &["application/grpc", "application/grpc+proto", "application/grpc+x"]),
    ));
    if rng.u8(..8) > 0 {
        fields.push(field("te", "trailers"));
    }
    if rng.u8(..4) == 0 {
        fields.push(field("grpc-encoding", choose(rng, &["gzip", "identity", "x-odd"])));
        fields.push(field("grpc-accept-encoding", "gzip, identity, deflate"));
    }
    if rng.u8(..6) == 0 {
        // Far away in every case.
        fields.push(field("grpc-timeout", choose(rng, &["99999999H", "5M", "3600S", "99999999m", "500000000u"])));
    }
    fields.extend(custom(rng));
    fields
}

/// Pseudo-header fields in any order, and the number.
pub fn request(rng: &mut Rng, method: &str, path: &str, number: u32) -> Vec<Field> {
    let mut fields = vec![
        field(":method", method),
        field(":scheme", "http"),
        field(":path", path),
        field(":authority", choose(rng, &["echo.default.svc:50051", "example.test", "[fd00::1]:80"])),
    ];
    rng.shuffle(&mut fields);
    fields.push(field(NUMBER, number.to_string()));
    fields
}

/// A gRPC response's head.
pub fn grpc_response(rng: &mut Rng) -> Vec<Field> {
    let mut fields = vec![field(":status", "200"), field("content-type", "application/grpc")];
    if rng.u8(..4) == 0 {
        fields.push(field("grpc-encoding", "gzip"));
    }
    fields.extend(custom(rng));
    fields
}

/// A call's outcome as trailers, or as what a Trailers-Only response adds to its head.
pub fn status(rng: &mut Rng) -> Vec<Field> {
    let code = if rng.bool() { 0 } else { *choose(rng, &[1, 2, 3, 4, 5, 7, 8, 9, 13, 14, 16, 99]) };
    let mut fields = vec![field("grpc-status", code.to_string())];
    if code != 0 || rng.u8(..4) == 0 {
        let message = *choose(rng, &["", "no such thing", "%E2%98%BA and %0A line", "50%25", "\t inner\ttab "]);
        fields.push(field("grpc-message", message.trim()));
    }
    if code != 0 && rng.bool() {
        let size = *choose(rng, &[0, 3, 40, 3_000, 12_000]);
        fields.push(field("grpc-status-details-bin", base64(rng, size)));
    }
    if rng.bool() {
        rng.shuffle(&mut fields);
    }
    fields.extend(custom(rng));
    fields
}

/// What an application adds; nothing most of the time, now and then a lot.
pub fn custom(rng: &mut Rng) -> Vec<Field> {
    let count = *choose(rng, &[0, 0, 0, 1, 2, 3, 5, 12, 60]);
    let mut fields: Vec<_> = (0..count).map(|_| one(rng)).collect();
    if rng.u8(..20) == 0 {
        // Below 64 KiB in all, as RFC 9113 §6.5.2 counts.
        fields.push(field("x-large", "l".repeat(rng.usize(8_000..30_000))));
    }
    // Duplicates, apart from each other.
    if let Some(again) = fields.first().cloned().filter(|_| rng.bool()) {
        fields.push(Field { value: value(rng, &again.name), ..again });
    }
    fields
}

fn one(rng: &mut Rng) -> Field {
    let name = match rng.u8(..3) {
        0 => format!("x-own-{}", rng.u8(..40)),
        _ => (*choose(rng, NAMES)).to_owned(),
    };
    let value = value(rng, name.as_bytes());
    let secret = if name == "authorization" { rng.u8(..4) > 0 } else { rng.u8(..12) == 0 };
    Field { name: name.into_bytes(), value, secret }
}

fn value(rng: &mut Rng, name: &[u8]) -> Vec<u8> {
    let size = *choose(rng, &[0, 1, 8, 20, 60, 200]);
    if name.ends_with(b"-bin") {
        return base64(rng, size).into_bytes();
    }
    if name == b"max-forwards" {
        return b"7".to_vec();
    }
    match rng.u8(..5) {
        0 => b"the same one always".to_vec(),
        1 => Vec::new(),
        // Bytes above ASCII are opaque, and allowed (RFC 9110 §5.5); so are inner spaces and tabs.
        2 => [b"\xe9", &vec![b'\xff'; size][..], b" \t \x80"].concat(),
        3 => (0..=size).map(|_| rng.alphanumeric() as u8).collect(),
        _ => [b"k=v; a=\"b, c\"; %", &vec![b'%'; size][..]].concat(),
    }
}

/// Unpadded or padded, as gRPC implementations do.
fn base64(rng: &mut Rng, size: usize) -> String {
    let digits: String = (0..size.div_ceil(3) * 4).map(|_| rng.alphanumeric()).collect();
    if rng.bool() { digits } else { digits + "AA==" }
}
