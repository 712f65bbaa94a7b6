//! Header fields as they may be shown to people. In: a header list; out: names and values, with what may be a secret hidden
//! and what is long cut. Pure.

use crate::splitter::hpack::{FieldView, HeaderList, Indexing, Name};

/// Bytes of a value that are shown.
const LONGEST_VALUE: usize = 1_024;
/// Bytes of a list's values that are shown.
const LONGEST_LIST: usize = 8 * 1_024;

/// A header field as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub name: String,
    pub value: String,
}

/// Fields as they may be shown. What its sender marked as never to be indexed is a secret by its own word (RFC 7541 §7.1.3).
pub(super) fn shown(list: &HeaderList) -> Vec<Shown> {
    let show = |field: FieldView<'_>| Shown { name: text(field.name()), value: value(field) };
    let mut left = LONGEST_LIST;
    let fits = |field: &Shown| {
        left = left.saturating_sub(field.name.len() + field.value.len());
        left > 0
    };
    let mut fields: Vec<_> = list.iter().map(show).take_while(fits).collect();
    if fields.len() < list.len() {
        fields.push(Shown { name: "…".to_owned(), value: format!("{} more fields", list.len() - fields.len()) });
    }
    fields
}

/// A field's value as it may be shown; of a path, what follows a question mark is its sender's own affair.
pub(super) fn value(field: FieldView<'_>) -> String {
    let value = field.value();
    let secret = field.indexing() == Indexing::NeverIndexed || is_secret(&text(field.name())) || looks_secret(value);
    if secret {
        return hidden(value);
    }
    match value.iter().position(|byte| *byte == b'?').filter(|_| field.kind() == Name::Path) {
        Some(at) => format!("{}?{}", text(&value[..at]), hidden(&value[at + 1..])),
        None => text(value),
    }
}

fn hidden(value: &[u8]) -> String {
    format!("(hidden, {} bytes)", value.len())
}

/// Names that are wont to carry secrets.
fn is_secret(name: &str) -> bool {
    const PARTS: [&str; 26] = [
        "auth",
        "cookie",
        "token",
        "secret",
        "passw",
        "pwd",
        "hmac",
        "api-key",
        "apikey",
        "api_key",
        "access-key",
        "accesskey",
        "access_key",
        "private",
        "credential",
        "session",
        "signature",
        "bearer",
        "jwt",
        "assertion",
        "oidc",
        "csrf",
        "xsrf",
        "client-cert",
        "otp",
        "-pin",
    ];
    let ours = matches!(name, ":authority" | "www-authenticate" | "proxy-authenticate");
    !ours && (name.ends_with("-key") || name.ends_with("_key") || PARTS.iter().any(|part| name.contains(part)))
}

/// Values that look like secrets, whatever their field is called: credentials with their scheme (RFC 9110 §11.4), JSON Web
/// Tokens (RFC 7519), keys that say by their beginning whose they are, private keys.
fn looks_secret(value: &[u8]) -> bool {
    const SCHEMES: [&[u8]; 7] = [b"basic ", b"bearer ", b"token ", b"digest ", b"negotiate ", b"aws4-hmac", b"apikey "];
    const BEGINNINGS: [&[u8]; 21] = [
        b"ghp_",
        b"gho_",
        b"ghu_",
        b"ghs_",
        b"ghr_",
        b"github_pat_",
        b"glpat-",
        b"npm_",
        b"hf_",
        b"ya29.",
        b"sk_live_",
        b"sk_test_",
        b"rk_live_",
        b"sk-ant-",
        b"sk-proj-",
        b"xoxb-",
        b"xoxp-",
        b"AKIA",
        b"ASIA",
        b"AIza",
        b"-----BEGIN",
    ];
    let begins = |scheme: &&[u8]| value.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    let is_jwt = value.starts_with(b"eyJ") && value.iter().filter(|byte| **byte == b'.').count() >= 2;
    is_jwt || SCHEMES.iter().any(begins) || BEGINNINGS.iter().any(|begin| value.starts_with(begin))
}

/// Bytes for people: what is no letter is escaped, what is long is cut.
pub(super) fn text(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(LONGEST_VALUE)];
    let mut text: String = cut.escape_ascii().map(char::from).collect();
    if cut.len() < bytes.len() {
        text.push('…');
    }
    text.replace("\\\"", "\"").replace("\\'", "'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_fields_names_or_by_their_look() {
        for name in [
            "authorization",
            "x-jwt-assertion",
            "x-amzn-oidc-data",
            "x-access-key",
            "x-csrf",
            "x-forwarded-client-cert",
            "x-key",
            "x-pwd",
            "x-hmac",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            ":authority",
            "www-authenticate",
            "user-agent",
            "grpc-timeout",
            "traceparent",
            "x-request-id",
            "content-type",
        ] {
            assert!(!is_secret(name), "{name}");
        }
        for value in [
            "Bearer x",
            "basic eDp5",
            "eyJhbGciOi.eyJzdWIi.c2ln",
            "ghp_abc",
            "sk-ant-api03-x",
            "Token x",
            "-----BEGIN PRIVATE KEY-----",
        ] {
            assert!(looks_secret(value.as_bytes()), "{value}");
        }
        for value in ["", "grpc-go/1.80.0", "eyJ", "trailers", "application/grpc", "a.b.c", "basic", "00-0af7-b7ad-01"]
        {
            assert!(!looks_secret(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_hidden_and_the_rest_is_shown_in_letters() {
        let mut list = HeaderList::new();
        for (name, value, indexing) in [
            (":authority", "cart:50051", Indexing::WithIndexing),
            (":path", "/a.B/C?key=abc", Indexing::WithIndexing),
            (":path", "/a.B/C", Indexing::NeverIndexed),
            ("authorization", "Bearer abc", Indexing::WithIndexing),
            ("x-session-id", "1234", Indexing::WithIndexing),
            ("x-plain", "v", Indexing::NeverIndexed),
            ("traceparent", "00-0af7-b7ad-01", Indexing::WithoutIndexing),
            ("x-bin", "\u{1}\"é", Indexing::WithoutIndexing),
        ] {
            list.push(name.as_bytes(), value.as_bytes(), indexing);
        }
        let shown: Vec<_> = shown(&list).into_iter().map(|field| field.value).collect();
        let hidden = |bytes| format!("(hidden, {bytes} bytes)");
        assert_eq!(
            shown,
            [
                "cart:50051".to_owned(),
                format!("/a.B/C?{}", hidden(7)),
                hidden(6),
                hidden(10),
                hidden(4),
                hidden(1),
                "00-0af7-b7ad-01".into(),
                "\\x01\"\\xc3\\xa9".into()
            ]
        );
        assert_eq!(text(&[b'a'; 2000]).chars().count(), LONGEST_VALUE + 1);
    }
}
