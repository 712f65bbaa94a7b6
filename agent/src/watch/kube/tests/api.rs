//! A small API server on loopback: lists in pages, watches with resource versions and bookmarks, forgets history, refuses,
//! goes away and comes back. What it was asked is remembered. Knows nothing of kinds: an object is what was put.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Default)]
struct State {
    version: u64,
    /// By resource and by `namespace/name`.
    objects: BTreeMap<(String, String), Value>,
    history: Vec<(u64, String, Value)>,
    /// Watches from before this version are told 410 Gone.
    forgotten: u64,
    /// Resources that nobody may read.
    forbidden: Vec<String>,
    /// What everybody must bring.
    token: Option<String>,
    requests: Vec<String>,
    posted: Vec<Value>,
    asked_to_post: usize,
}

pub(super) struct Api {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Rises with each change.
    changes: watch::Sender<u64>,
    server: Option<JoinHandle<()>>,
}

impl Api {
    pub(super) async fn start() -> Self {
        let mut api = Self {
            address: ([127, 0, 0, 1], 0).into(),
            state: Arc::default(),
            changes: watch::Sender::new(0),
            server: None,
        };
        api.come_back().await;
        api
    }

    /// All connections break, and new ones are refused.
    pub(super) async fn go_away(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // Cancelled, as it was just told to.
            _ = server.await;
        }
    }

    pub(super) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let (state, changes) = (Arc::clone(&self.state), self.changes.clone());
        self.server = Some(tokio::spawn(async move {
            // Connections are polled here, so that they end with this task.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, changes) = (Arc::clone(&state), changes.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, Arc::clone(&state), changes.subscribe()));
                    // The peer may break it off.
                    _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }));
    }

    pub(super) fn put(&self, resource: &str, namespace: &str, name: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        object["metadata"]["name"] = name.into();
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = namespace.into();
        }
        object["metadata"]["uid"] = format!("uid-{namespace}-{name}").into();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let known = state.objects.insert((resource.to_owned(), format!("{namespace}/{name}")), object.clone());
        let what = if known.is_some() { "MODIFIED" } else { "ADDED" };
        state.history.push((version, resource.to_owned(), json!({ "type": what, "object": object })));
        drop(state);
        self.changes.send_replace(version);
    }

    pub(super) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let mut object = state.objects.remove(&(resource.to_owned(), format!("{namespace}/{name}"))).unwrap();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.history.push((version, resource.to_owned(), json!({ "type": "DELETED", "object": object })));
        drop(state);
        self.changes.send_replace(version);
    }

    /// Tells those who watch the resource how far they are.
    pub(super) fn bookmark(&self, resource: &str) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let object = json!({ "kind": "x", "apiVersion": "v1", "metadata": { "resourceVersion": version.to_string() } });
        state.history.push((version, resource.to_owned(), json!({ "type": "BOOKMARK", "object": object })));
        drop(state);
        self.changes.send_replace(version);
    }

    /// Forgets all history: who comes with an older version than now is told to list.
    pub(super) fn compact(&self) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        state.forgotten = state.version;
        state.history.clear();
    }

    /// Puts an old state back, as etcd from a backup: without this object, and with versions that were given before.
    pub(super) fn restore(&self, without: (&str, &str, &str)) {
        let (resource, namespace, name) = without;
        let mut state = self.state.lock().unwrap();
        state.objects.remove(&(resource.to_owned(), format!("{namespace}/{name}")));
        state.history.clear();
        state.version = 1;
    }

    pub(super) fn version(&self) -> u64 {
        self.state.lock().unwrap().version
    }

    pub(super) fn forbid(&self, resource: &str, forbidden: bool) {
        let list = &mut self.state.lock().unwrap().forbidden;
        list.retain(|it| it != resource);
        if forbidden {
            list.push(resource.to_owned());
        }
    }

    /// From now on only those who bring this token are answered.
    pub(super) fn require_token(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.to_owned());
    }

    /// The requests since the last time, those of this resource, as path and query.
    pub(super) fn take_requests(&self, resource: &str) -> Vec<String> {
        let mut state = self.state.lock().unwrap();
        let (taken, others) =
            std::mem::take(&mut state.requests).into_iter().partition(|request| resource_of(request) == resource);
        state.requests = others;
        taken
    }

    /// How often somebody asked to create something, in vain or not.
    pub(super) fn asked_to_post(&self) -> usize {
        self.state.lock().unwrap().asked_to_post
    }

    pub(super) fn posted(&self) -> Vec<Value> {
        self.state.lock().unwrap().posted.clone()
    }
}

fn resource_of(path_and_query: &str) -> &str {
    let path = path_and_query.split('?').next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

pub(super) fn parameter<'a>(path_and_query: &'a str, name: &str) -> Option<&'a str> {
    let query = path_and_query.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
) -> Result<Response<Body>, Infallible> {
    let asked = request.uri().path_and_query().unwrap().to_string();
    let resource = resource_of(&asked).to_owned();
    if request.method() == "POST" {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let posted: Value = serde_json::from_slice(&body).unwrap();
        let mut state = state.lock().unwrap();
        state.asked_to_post += 1;
        let name = |it: &Value| it["metadata"]["name"].clone();
        if state.posted.iter().any(|known| name(known) == name(&posted)) {
            return Ok(refusal(409, "AlreadyExists", "exists"));
        }
        state.posted.push(posted.clone());
        return Ok(whole(201, &posted));
    }
    let mut state_now = state.lock().unwrap();
    state_now.requests.push(asked.clone());
    if let Some(token) = &state_now.token
        && request.headers().get("authorization").is_none_or(|it| *it != format!("Bearer {token}"))
    {
        return Ok(refusal(401, "Unauthorized", "Unauthorized"));
    }
    if state_now.forbidden.contains(&resource) {
        return Ok(refusal(403, "Forbidden", &format!("{resource} is forbidden: cannot list")));
    }
    if parameter(&asked, "watch").is_none() {
        return Ok(whole(200, &list(&state_now, &resource, &asked)));
    }
    let from: u64 = parameter(&asked, "resourceVersion").unwrap().parse().unwrap();
    if from > state_now.version {
        return Ok(refusal(504, "Timeout", "Too large resource version"));
    }
    let gone = from < state_now.forgotten;
    drop(state_now);
    if gone {
        let gone = json!({ "type": "ERROR", "object": status(410, "Expired", "too old resource version") });
        return Ok(Response::new(Full::new(line(&gone)).boxed()));
    }
    let events = stream::unfold((from, changes), move |(from, mut changes)| {
        let (state, resource) = (Arc::clone(&state), resource.clone());
        async move {
            loop {
                changes.mark_unchanged();
                let next = {
                    let state = state.lock().unwrap();
                    let found = state.history.iter().find(|(version, of, _)| *version > from && *of == resource);
                    found.map(|(version, _, event)| (*version, line(event)))
                };
                if let Some((version, bytes)) = next {
                    return Some((Ok(Frame::data(bytes)), (version, changes)));
                }
                changes.changed().await.ok()?;
            }
        }
    });
    Ok(Response::new(BodyExt::boxed(StreamBody::new(events))))
}

fn list(state: &State, resource: &str, asked: &str) -> Value {
    let all: Vec<&Value> = state.objects.iter().filter(|((of, _), _)| of == resource).map(|(_, it)| it).collect();
    let limit = parameter(asked, "limit").map_or(usize::MAX, |it| it.parse().unwrap());
    let from: usize = parameter(asked, "continue").map_or(0, |it| it.parse().unwrap());
    let page: Vec<_> = all.iter().skip(from).take(limit).collect();
    let next = from + page.len();
    let token = if next < all.len() { next.to_string() } else { String::new() };
    json!({
        "kind": "List", "apiVersion": "v1",
        "metadata": { "resourceVersion": state.version.to_string(), "continue": token },
        "items": page,
    })
}

fn line(event: &Value) -> Bytes {
    format!("{event}\n").into()
}

fn whole(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed());
    *response.status_mut() = code.try_into().unwrap();
    response
}

fn refusal(code: u16, reason: &str, message: &str) -> Response<Body> {
    whole(code, &status(code, reason, message))
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": message })
}
