//! What a well-formed request, response and trailer section is (RFC 9113 §8.1–§8.3), so that nothing malformed goes on.
//!
//! Header lists in; what the splitter must know of them, or the fault, out. It changes no field.

use super::hpack::{HeaderList, Indexing, Name};
use crate::calls::Ended;

/// What is said of headers and trailers that are too large.
pub(super) const TOO_LARGE: &str = "headers exceed header-list or header-fields, limits of sluice";

/// What is wrong with a message: a stream error of type PROTOCOL_ERROR (RFC 9113 §8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// What the splitter keeps of a request's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// content-type begins with `application/grpc`.
    pub(super) grpc: bool,
    /// The method is HEAD.
    pub(super) head: bool,
    /// The method is CONNECT.
    pub(super) connect: bool,
    pub(super) content_length: Option<u64>,
}

/// What the splitter keeps of a response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) content_length: Option<u64>,
}

impl Response {
    /// 1xx: another response follows (RFC 9113 §8.1).
    pub(super) fn is_interim(self) -> bool {
        self.status < 200
    }
}

/// What a list was found to be, in the lowest bits of its note: lists that come again are judged once.
const REQUEST: u64 = 1;
const RESPONSE: u64 = 2;
const TRAILERS: u64 = 3;
/// Bits of the kind, of what else there is, and of 1 + the content-length if there is one.
const NOTE_BITS: (u32, u32, u32) = (2, 14, 48);

/// 0: not in so many bits.
fn note(kind: u64, rest: u64, length: Option<u64>) -> u64 {
    let (of_kind, of_rest, of_length) = NOTE_BITS;
    match length.map_or(Some(0), |length| length.checked_add(1)) {
        Some(length) if length >> of_length == 0 => length << (of_kind + of_rest) | rest << of_kind | kind,
        _ => 0,
    }
}

/// What was noted of a list of this kind.
fn noted(fields: &HeaderList, kind: u64) -> Option<(u64, Option<u64>)> {
    let note = fields.note();
    let (of_kind, of_rest, _) = NOTE_BITS;
    let (rest, length) = (note >> of_kind & ((1 << of_rest) - 1), note >> (of_kind + of_rest));
    (note & ((1 << of_kind) - 1) == kind).then(|| (rest, length.checked_sub(1)))
}

pub(super) fn request(fields: &HeaderList) -> Result<Request, Malformed> {
    if let Some((said, content_length)) = noted(fields, REQUEST) {
        return Ok(Request { grpc: said & 1 != 0, head: said & 2 != 0, connect: said & 4 != 0, content_length });
    }
    let request = judge_request(fields)?;
    let said = u64::from(request.grpc) | u64::from(request.head) << 1 | u64::from(request.connect) << 2;
    fields.set_note(note(REQUEST, said, request.content_length));
    Ok(request)
}

pub(super) fn response(fields: &HeaderList) -> Result<Response, Malformed> {
    if let Some((status, content_length)) = noted(fields, RESPONSE) {
        return Ok(Response { status: status as u16, content_length });
    }
    let response = judge_response(fields)?;
    fields.set_note(note(RESPONSE, response.status.into(), response.content_length));
    Ok(response)
}

pub(super) fn trailers(fields: &HeaderList) -> Result<(), Malformed> {
    if noted(fields, TRAILERS).is_some() {
        return Ok(());
    }
    judge_trailers(fields)?;
    fields.set_note(note(TRAILERS, 0, None));
    Ok(())
}

fn judge_request(fields: &HeaderList) -> Result<Request, Malformed> {
    let mut request = Request::default();
    let (mut method, mut scheme, mut authority, mut path) = (None, false, false, false);
    let mut regular = false;
    for field in fields.iter() {
        if !field.is_valid() {
            return Err(Malformed("invalid character in a field"));
        }
        if field.kind().is_pseudo() && regular {
            return Err(Malformed("pseudo-header after a regular field"));
        }
        match field.kind() {
            Name::Method if method.replace(field.value() == b"CONNECT").is_some() => {
                return Err(Malformed("two :method"));
            }
            Name::Scheme if std::mem::replace(&mut scheme, true) => return Err(Malformed("two :scheme")),
            Name::Authority if std::mem::replace(&mut authority, true) => return Err(Malformed("two :authority")),
            Name::Path if std::mem::replace(&mut path, true) => return Err(Malformed("two :path")),
            Name::Path if field.value().is_empty() => return Err(Malformed("empty :path")),
            Name::Method => request.head = field.value() == b"HEAD",
            Name::Scheme | Name::Authority | Name::Path => {}
            Name::Status | Name::UnknownPseudo => return Err(Malformed("unknown pseudo-header in a request")),
            _ => {
                regular = true;
                common(field.kind(), field.value(), &mut request.content_length)?;
                if field.kind() == Name::ContentType {
                    request.grpc = field.value().starts_with(b"application/grpc");
                }
            }
        }
    }
    match method {
        None => Err(Malformed("no :method")),
        Some(true) if scheme || path || !authority => Err(Malformed("CONNECT takes :authority alone")),
        Some(false) if !scheme || !path => Err(Malformed("no :scheme or no :path")),
        Some(connect) => Ok(Request { connect, ..request }),
    }
}

fn judge_response(fields: &HeaderList) -> Result<Response, Malformed> {
    let mut status = None;
    let mut content_length = None;
    let mut regular = false;
    for field in fields.iter() {
        if !field.is_valid() {
            return Err(Malformed("invalid character in a field"));
        }
        match field.kind() {
            Name::Status => {
                let code = match field.value() {
                    [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                        u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
                    }
                    _ => return Err(Malformed(":status is no three-digit number")),
                };
                if regular || status.replace(code).is_some() {
                    return Err(Malformed("misplaced or second :status"));
                }
            }
            kind if kind.is_pseudo() => return Err(Malformed("unknown pseudo-header in a response")),
            kind => {
                regular = true;
                common(kind, field.value(), &mut content_length)?;
            }
        }
    }
    // 101 has no meaning in HTTP/2 (RFC 9113 §8.6).
    match status {
        None => Err(Malformed("no :status")),
        Some(101) => Err(Malformed("101 in HTTP/2")),
        Some(status) => Ok(Response { status, content_length }),
    }
}

fn judge_trailers(fields: &HeaderList) -> Result<(), Malformed> {
    for field in fields.iter() {
        if !field.is_valid() {
            return Err(Malformed("invalid character in a trailer"));
        }
        if field.kind().is_pseudo() {
            return Err(Malformed("pseudo-header in trailers"));
        }
        common(field.kind(), field.value(), &mut None)?;
    }
    Ok(())
}

/// The rules for regular fields of every kind of message (RFC 9113 §8.2.2, RFC 9110 §8.6).
fn common(kind: Name, value: &[u8], content_length: &mut Option<u64>) -> Result<(), Malformed> {
    match kind {
        Name::ConnectionSpecific => Err(Malformed("connection-specific field")),
        Name::Te if !value.eq_ignore_ascii_case(b"trailers") => Err(Malformed("te other than trailers")),
        Name::ContentLength => {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
            let length = length.ok_or(Malformed("content-length is no number"))?;
            match content_length.replace(length) {
                Some(before) if before != length => Err(Malformed("two content-length that differ")),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// grpc-status values that we say ourselves (gRPC: statuscodes.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    ResourceExhausted,
    Internal,
    Unavailable,
}

impl Status {
    /// The code as text, and the HTTP status for requests that are not gRPC.
    fn codes(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Status::ResourceExhausted => (b"8", b"431"),
            Status::Internal => (b"13", b"502"),
            Status::Unavailable => (b"14", b"503"),
        }
    }

    /// How a call that is answered with it ends.
    pub(super) fn ended(self, grpc: bool) -> Ended {
        match self {
            _ if grpc => Ended::of_own(self.codes().0),
            Status::ResourceExhausted => Ended::Http(431),
            Status::Internal => Ended::Http(502),
            Status::Unavailable => Ended::Http(503),
        }
    }
}

/// The response that we give where no endpoint can: Trailers-Only for gRPC (gRPC: PROTOCOL-HTTP2.md), else an HTTP
/// status without a body.
pub(super) fn own_response(list: &mut HeaderList, grpc: bool, status: Status, message: &str) {
    list.clear();
    let (code, http) = status.codes();
    if grpc {
        list.push(b":status", b"200", Indexing::WithIndexing);
        list.push(b"content-type", b"application/grpc", Indexing::WithIndexing);
        list.push(b"grpc-status", code, Indexing::WithIndexing);
        list.push(b"grpc-message", message.as_bytes(), Indexing::WithoutIndexing);
    } else {
        list.push(b":status", http, Indexing::WithIndexing);
        list.push(b"content-length", b"0", Indexing::WithIndexing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&str, &str)]) -> HeaderList {
        let mut list = HeaderList::new();
        for (name, value) in fields {
            list.push(name.as_bytes(), value.as_bytes(), Indexing::WithoutIndexing);
        }
        list
    }

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

    fn with(extra: &[(&'static str, &'static str)]) -> HeaderList {
        list(&[&GET, extra].concat())
    }

    #[test]
    fn a_grpc_request_is_known_by_its_content_type() {
        assert!(request(&with(&[("content-type", "application/grpc+proto"), ("te", "trailers")])).unwrap().grpc);
        assert!(!request(&with(&[("content-type", "text/plain")])).unwrap().grpc);
    }

    #[test]
    fn a_malformed_request_is_refused() {
        for (why, fields) in [
            ("no :method", list(&GET[1..])),
            ("no :scheme", list(&[GET[0], GET[2]])),
            ("no :path", list(&GET[..2])),
            ("empty :path", list(&[GET[0], GET[1], (":path", "")])),
            ("two :method", with(&[(":method", "GET")])),
            ("two :path", with(&[(":path", "/")])),
            (":status", with(&[(":status", "200")])),
            ("unknown", with(&[(":foo", "bar")])),
            ("late pseudo", list(&[GET[0], GET[1], ("x", "y"), GET[2]])),
            ("upper case", with(&[("X-Foo", "bar")])),
            ("connection", with(&[("connection", "keep-alive")])),
            ("upgrade", with(&[("upgrade", "h2c")])),
            ("te", with(&[("te", "gzip")])),
            ("newline", with(&[("x", "a\nb")])),
            ("length", with(&[("content-length", "+1")])),
            ("lengths", with(&[("content-length", "1"), ("content-length", "2")])),
            ("CONNECT with :path", list(&[(":method", "CONNECT"), (":authority", "a"), (":path", "/")])),
        ] {
            assert!(request(&fields).is_err(), "{why}");
        }
        assert!(request(&with(&[("content-length", "1"), ("content-length", "1")])).is_ok());
        assert!(request(&list(&[(":method", "CONNECT"), (":authority", "a")])).is_ok());
    }

    #[test]
    fn a_malformed_response_is_refused() {
        for (why, fields) in [
            ("none", list(&[("x", "y")])),
            ("short", list(&[(":status", "20")])),
            ("101", list(&[(":status", "101")])),
            ("two", list(&[(":status", "200"), (":status", "200")])),
            ("late", list(&[("x", "y"), (":status", "200")])),
            ("request's", list(&[(":status", "200"), (":path", "/")])),
            ("connection", list(&[(":status", "200"), ("connection", "close")])),
        ] {
            assert!(response(&fields).is_err(), "{why}");
        }
        assert!(response(&list(&[(":status", "103")])).unwrap().is_interim());
        assert_eq!(response(&list(&[(":status", "200"), ("content-length", "7")])).unwrap().content_length, Some(7));
    }

    #[test]
    fn a_list_that_is_judged_again_is_judged_alike() {
        let lengths = ["0", "1", "140737488355328", "281474976710654", "281474976710655", "18446744073709551615"];
        let methods = [("GET", "text/plain"), ("POST", "application/grpc"), ("HEAD", "application/grpc")];
        let mut requests: Vec<_> = methods
            .map(|(method, kind)| list(&[(":method", method), GET[1], GET[2], GET[3], ("content-type", kind)]))
            .into();
        requests.push(list(&[(":method", "CONNECT"), (":authority", "a")]));
        requests.extend(lengths.map(|length| with(&[("content-length", length)])));
        for list in requests {
            assert_eq!(request(&list), judge_request(&list));
            assert_eq!(request(&list), judge_request(&list));
            // What is a proper request is neither of the others, whatever was noted.
            assert!(response(&list).is_err() && trailers(&list).is_err());
        }
        for status in ["100", "200", "503", "999"] {
            let mut responses = vec![list(&[(":status", status)])];
            responses.extend(lengths.map(|length| list(&[(":status", status), ("content-length", length)])));
            for list in responses {
                assert_eq!(response(&list), judge_response(&list));
                assert_eq!(response(&list), judge_response(&list));
                assert!(request(&list).is_err());
            }
        }
        // An empty list is trailers, and no request.
        let empty = HeaderList::new();
        assert!(trailers(&empty).is_ok() && request(&empty).is_err() && trailers(&empty).is_ok());
    }

    #[test]
    fn trailers_carry_no_pseudo_header() {
        assert!(trailers(&list(&[("grpc-status", "0")])).is_ok());
        assert!(trailers(&list(&[(":status", "200")])).is_err());
    }

    #[test]
    fn our_own_response_is_well_formed() {
        let mut list = HeaderList::new();
        for grpc in [true, false] {
            own_response(&mut list, grpc, Status::Unavailable, "no endpoint");
            assert!(response(&list).is_ok());
        }
    }
}
