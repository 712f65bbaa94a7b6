//! The admin pages: /livez, /readyz, /status.json, /metrics. In: HTTP requests, and the control loop's word on each;
//! out: pages. The control loop and the workers are asked when somebody looks, so that the pages cost nothing in
//! between, and an agent whose loop hangs is not live. Changes nothing.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::addr::NetnsCookie;
use crate::intercept::{PodEntry, VerdictCounts};
use crate::pods::PodUid;
use crate::table::{Built, Problem};
use crate::worker::{PodReport, Report, WorkerHandle};

mod metrics;
mod status;

/// The control loop and the workers answer within milliseconds; this long means that they hang.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Connections served at once; the others wait.
const MAX_CONNECTIONS: usize = 64;

/// A client that does not finish its request's head by then is closed.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// How far the agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not all objects are known yet; nothing is attached.
    Syncing,
    /// The source is synced, programs are attached and workers run, as always while the loop answers; but not every pod
    /// that was there at the start has been looked at.
    Scanning,
    Ready,
    /// New connections are left alone; open streams finish.
    Draining,
}

/// One enrolled network namespace.
#[derive(Clone, Debug)]
pub struct PodLine {
    pub cookie: NetnsCookie,
    pub uid: PodUid,
    /// `namespace/name`, or the UID where the source does not know the pod.
    pub name: Arc<str>,
    pub entry: PodEntry,
}

/// What the control loop knows at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub state: State,
    /// Kinds of objects that are waited for while syncing, by name.
    pub missing: Vec<&'static str>,
    pub cgroup: PathBuf,
    /// Empty where it was not asked for.
    pub built: Arc<Built>,
    /// Of the source itself; those of its objects are in `built`.
    pub source_problems: Vec<Problem>,
    pub pods: Vec<PodLine>,
    pub verdicts: VerdictCounts,
    pub workers: Vec<WorkerHandle>,
}

/// A snapshot with what the workers say to it.
struct View {
    snapshot: Snapshot,
    /// None: the worker does not answer.
    reports: Vec<Option<Report>>,
}

impl Snapshot {
    fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.source_problems.iter().chain(&self.built.problems)
    }
}

impl View {
    fn report_of(&self, pod: &PodLine) -> Option<&PodReport> {
        let report = self.reports.get(pod.entry.worker as usize)?.as_ref()?;
        report.pods.iter().find(|report| report.cookie == pod.cookie)
    }
}

/// Asks the control loop for a snapshot.
pub struct Question {
    /// Whether `built` is asked for. Probes ask every few seconds and need nothing of it, and it takes a large cluster
    /// some milliseconds, in which no change is taken in.
    pub built: bool,
    pub answer: oneshot::Sender<Snapshot>,
}

/// The way to the control loop.
pub type Asks = mpsc::Sender<Question>;

/// Serves the pages for ever. To be spawned on the runtime.
pub async fn serve(listener: TcpListener, asks: Asks) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let asks = asks.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let asks = asks.clone();
                async move { Ok::<_, Infallible>(answer(&request, &asks).await) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "an admin connection failed");
            }
        });
    }
}

async fn answer(request: &Request<Incoming>, asks: &Asks) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    let page = request.uri().path();
    if !["/livez", "/readyz", "/status.json", "/metrics"].contains(&page) {
        return text(StatusCode::NOT_FOUND, "pages: /livez /readyz /status.json /metrics\n");
    }
    let snapshot = match ask(asks, ["/status.json", "/metrics"].contains(&page)).await {
        Ok(snapshot) => snapshot,
        Err(error) => return text(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")),
    };
    match page {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(&snapshot),
        "/metrics" => respond(StatusCode::OK, "text/plain; version=0.0.4", metrics::page(&view(snapshot).await)),
        _ => respond(StatusCode::OK, "application/json", status::page(&view(snapshot).await)),
    }
}

async fn ask(asks: &Asks, built: bool) -> anyhow::Result<Snapshot> {
    let (answer, answered) = oneshot::channel();
    timeout(ANSWER_WITHIN, async {
        asks.send(Question { built, answer }).await.ok()?;
        answered.await.ok()
    })
    .await
    .context("the agent's control loop does not answer")?
    .context("the agent is ending")
}

async fn view(snapshot: Snapshot) -> View {
    let answers: Vec<_> = snapshot.workers.iter().map(WorkerHandle::report).collect();
    let mut reports = Vec::new();
    for answer in answers {
        reports.push(timeout(ANSWER_WITHIN, answer).await.ok().and_then(Result::ok));
    }
    View { snapshot, reports }
}

fn ready(snapshot: &Snapshot) -> Response<Full<Bytes>> {
    let not = |why: String| text(StatusCode::SERVICE_UNAVAILABLE, why);
    match snapshot.state {
        State::Ready => text(StatusCode::OK, "ok\n"),
        State::Syncing => {
            let problems = snapshot.source_problems.iter().map(|problem| format!("{problem}\n")).collect::<String>();
            not(format!("waiting for all {}\n{problems}", snapshot.missing.join(", ")))
        }
        State::Scanning => not("the node's pods are still being enrolled\n".to_owned()),
        State::Draining => not("draining: the agent was told to stop\n".to_owned()),
    }
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    respond(status, "text/plain", body.into())
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
