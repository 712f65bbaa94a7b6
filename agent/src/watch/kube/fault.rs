//! Why the API server gave no answer that can be used. In: the client library's error; out: what happened, whether it passes by
//! itself, and the cure, in words without the layers that it passed through. Decides nothing about what serves meanwhile.

use std::io;

use crate::table::object::Kind;

/// A text of a server is shown so far: some answer with a whole page.
const SHOWN: usize = 120;

const AWAY: &str =
    "see that the API server runs, and that NetworkPolicies and firewalls let the agent reach it; it tries on";
const NOT_THE_SERVER: &str = "see that the address is the API server's own (`server` in a kubeconfig), and that no proxy \
                              answers in its place (HTTPS_PROXY, NO_PROXY)";
const NOT_TRUSTED: &str = "give the authority that signed the API server's certificate (`certificate-authority` in a kubeconfig), \
                           and reach the server by a name or address that is in the certificate (`server`, `tls-server-name`); \
                           see that this machine's clock is right";

/// One attempt to be answered that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub what: String,
    pub cure: String,
    /// It stays until somebody mends something; what else there is passes by itself.
    pub lasts: bool,
}

impl Fault {
    /// `asked`: the objects that were to be listed or watched.
    pub fn of(error: &kube::Error, asked: Option<Kind>) -> Self {
        match error {
            kube::Error::Api(status) => Self::refused(&status.message, status.code, &status.reason, asked),
            kube::Error::SerdeError(error) => {
                lasting(format!("what answers does not speak as an API server does: {error}"), NOT_THE_SERVER)
            }
            kube::Error::Auth(_) | kube::Error::InferConfig(_) | kube::Error::InferKubeconfig(_) => lasting(
                innermost(error),
                "see what the kubeconfig says of this user: token, certificate, or command (`exec`)",
            ),
            other => Self::of_connection(innermost(other)),
        }
    }

    /// No answer in time.
    pub fn silence(within: std::time::Duration) -> Self {
        passing(format!("no answer within {} s", within.as_secs()))
    }

    fn refused(message: &str, code: u16, reason: &str, asked: Option<Kind>) -> Self {
        let message = shortened(message);
        let what = format!("{message} (HTTP {code})");
        match code {
            401 => lasting(
                format!("the API server does not accept the agent's token or certificate: {what}"),
                "see that the agent's Pod has a ServiceAccount and a fresh token, or renew the kubeconfig",
            ),
            // A page of a proxy, say.
            400..500 if reason == "Failed to parse error data" => {
                lasting(format!("what answers is no API server: {what}"), NOT_THE_SERVER)
            }
            403 => lasting(
                what,
                &match asked {
                    Some(kind) => format!(
                        "allow the agent's ServiceAccount to list and watch {}: apply the ClusterRole of the manifests",
                        kind.plural()
                    ),
                    None => "apply the ClusterRole of the manifests to the agent's ServiceAccount".to_owned(),
                },
            ),
            408 | 429 | 500.. => Self { what, cure: "see the API server's health".to_owned(), lasts: false },
            _ => lasting(what, "see the API server's log"),
        }
    }

    fn of_connection(what: String) -> Self {
        if what.contains("invalid peer certificate") {
            lasting(format!("the API server's certificate is not trusted: {what}"), NOT_TRUSTED)
        } else if what.contains("corrupt message") {
            lasting(format!("what answers does not speak TLS: {what}"), NOT_THE_SERVER)
        } else {
            passing(what)
        }
    }
}

fn lasting(what: String, cure: &str) -> Fault {
    Fault { what, cure: cure.to_owned(), lasts: true }
}

fn passing(what: String) -> Fault {
    Fault { what, cure: AWAY.to_owned(), lasts: false }
}

/// The innermost cause says what happened, such as "Connection refused"; those around it name layers.
fn innermost(error: &kube::Error) -> String {
    let cause = anyhow::Chain::new(error).next_back();
    let inner = cause.and_then(|cause| cause.downcast_ref::<io::Error>()).and_then(io::Error::get_ref);
    let words = inner.map(ToString::to_string).or_else(|| cause.map(ToString::to_string));
    words.unwrap_or_else(|| error.to_string())
}

fn shortened(text: &str) -> String {
    let line = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) if line.starts_with('<') => format!("{}…", &line[..end]),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn refused(code: u16, message: &str, reason: &str) -> Fault {
        Fault::of(&kube::Error::Api(Status::failure(message, reason).with_code(code).boxed()), None)
    }

    fn broken(text: &'static str) -> Fault {
        Fault::of(&kube::Error::Service(Box::new(io::Error::other(text))), None)
    }

    #[test]
    fn who_is_refused_is_told_so_and_who_meets_a_sick_server_may_wait() {
        let unauthorized = refused(401, "Unauthorized", "Unauthorized");
        assert!(unauthorized.lasts && unauthorized.what.ends_with("Unauthorized (HTTP 401)"), "{unauthorized:?}");
        assert!(unauthorized.cure.contains("token"));
        let forbidden = refused(403, "nodes is forbidden", "Forbidden");
        assert!(forbidden.lasts && forbidden.cure.contains("ClusterRole"), "{forbidden:?}");
        for code in [408, 429, 500, 503] {
            assert!(!refused(code, "later", "x").lasts, "{code}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_no_server_that_is_away() {
        let unknown = broken("invalid peer certificate: UnknownIssuer");
        assert!(unknown.lasts && unknown.cure.contains("certificate-authority"), "{unknown:?}");
        assert!(broken("received corrupt message of type InvalidContentType").cure.contains("proxy"));
        let away = broken("Connection refused (os error 111)");
        assert!(!away.lasts && away.cure.contains("NetworkPolicies"), "{away:?}");
        assert_eq!(away.what, "Connection refused (os error 111)");
    }

    #[test]
    fn a_page_of_somebody_else_is_named_as_such_and_not_shown_whole() {
        let page = format!("<html>\n<body>{}</body></html>", "x".repeat(1000));
        let page = refused(404, &page, "Failed to parse error data");
        assert!(page.lasts && page.what.len() < 250 && page.cure.contains("proxy"), "{page:?}");
        let json = serde_json::from_str::<u8>("<html>").unwrap_err();
        assert!(Fault::of(&kube::Error::SerdeError(json), None).what.contains("as an API server"));
    }
}
