//! The admin pages: /, /livez, /readyz, /status.json, /metrics on the admin address; on the local socket also what shows
//! calls or changes something. In: HTTP requests, and the control loop's word on each; out: pages. The control loop and
//! the workers are asked when somebody looks, so that the pages cost nothing in between, and an agent whose loop hangs is
//! not live.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::Full;
use http_body_util::combinators::BoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{timeout, timeout_at};

use crate::addr::NetnsCookie;
use crate::intercept::{PodEntry, VerdictCounts};
use crate::pods::{self, PodUid};
use crate::table::{Built, Problem, ServicePortName};
use crate::worker::{PodReport, Report, WorkerHandle};

use spread::NotSpread;

pub mod families;
pub mod local;
mod metrics;
mod spread;
mod status;
mod sums;

/// The control loop and the workers answer within milliseconds; this long means that they hang.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Connections served at once; the others wait.
const MAX_CONNECTIONS: usize = 64;

/// Looking at all connections of all pods costs two milliseconds of a core for each pod: the kernel walks through one table of
/// all namespaces each time. What was seen serves for this long, while somebody looks again and again; what is older than `TOO_OLD`
/// serves nobody, and whoever asks for it fresh gets what is no older than `FRESH`.
const SPREAD_AGAIN: Duration = Duration::from_secs(30);
const TOO_OLD: Duration = Duration::from_secs(45);
const FRESH: Duration = Duration::from_secs(1);

/// Nothing but what is in the page, and the agent that served it.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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

/// What probes ask for.
#[derive(Clone, Debug)]
pub struct Health {
    pub state: State,
    /// Kinds of objects that are waited for while syncing, by name.
    pub missing: Vec<&'static str>,
    /// Of the source itself, not of its objects.
    pub source_problems: Vec<Problem>,
}

/// What the control loop knows at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub health: Health,
    /// This node's name, where it is known.
    pub node: Option<Arc<str>>,
    pub cgroup: PathBuf,
    pub built: Built,
    pub pods: Vec<PodLine>,
    /// Names of the source's pods by UID, enrolled or not.
    pub pod_names: HashMap<Arc<str>, Arc<str>>,
    /// UIDs of those that run in the node's own network namespace.
    pub host_network: HashSet<Arc<str>>,
    pub verdicts: VerdictCounts,
    pub workers: Vec<WorkerHandle>,
    /// How long ago each kind of object was last followed.
    pub sync_ages: Vec<(&'static str, Duration)>,
    /// Who looks at calls.
    pub taps: usize,
    pub started: Instant,
}

/// A snapshot with what the workers say to it.
struct View {
    snapshot: Snapshot,
    /// None: the worker does not answer.
    reports: Vec<Option<Report>>,
}

impl Snapshot {
    /// `namespace/name`, or the UID where the source does not know the pod.
    fn pod_name(&self, uid: &PodUid) -> Arc<str> {
        self.pod_names.get(uid.as_str()).cloned().unwrap_or_else(|| uid.as_str().into())
    }

    fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.health.source_problems.iter().chain(&self.built.problems)
    }
}

impl View {
    fn report_of(&self, pod: &PodLine) -> Option<&PodReport> {
        let report = self.reports.get(pod.entry.worker as usize)?.as_ref()?;
        report.pods.iter().find(|report| report.cookie == pod.cookie)
    }
}

/// A question to the control loop, and where the answer goes.
#[derive(Debug)]
pub enum Ask {
    Health(oneshot::Sender<Health>),
    /// Takes milliseconds where there are thousands of Services.
    Snapshot(Box<oneshot::Sender<Snapshot>>),
    /// Which of these addresses are endpoints, and of which Services.
    Owners(HashSet<SocketAddr>, oneshot::Sender<HashMap<SocketAddr, Vec<ServicePortName>>>),
    /// What only the local socket may ask for.
    Local(local::Ask),
}

/// Where the control loop hears questions.
pub type Asks = mpsc::Sender<Ask>;

/// What all connections share.
pub struct Pages {
    asks: Asks,
    places: Arc<Semaphore>,
    /// What was found last.
    found: std::sync::Mutex<Option<Found>>,
    /// Held while somebody looks.
    looking: Mutex<()>,
}

/// Connections that are not spread, as they were when somebody looked.
#[derive(Clone, Debug)]
struct Found {
    at: Instant,
    lines: Arc<[NotSpread]>,
}

impl Pages {
    pub fn new(asks: Asks) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Arc::new(Self { asks, places, found: Default::default(), looking: Mutex::default() })
    }

    /// What was found last, unless that is older.
    fn found(&self, at_most: Duration) -> Option<Found> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        found.filter(|found| found.at.elapsed() < at_most)
    }

    /// Looks at the connections of all pods, unless somebody has just done so.
    async fn look(&self, view: &View) -> anyhow::Result<Found> {
        let _looking = self.looking.lock().await;
        if let Some(found) = self.found(FRESH) {
            return Ok(found);
        }
        let lines = not_spread(&self.asks, view).await?.into();
        let found = Found { at: Instant::now(), lines };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
        Ok(found)
    }
}

type Body = BoxBody<Bytes, Infallible>;

/// Serves the pages for ever. To be spawned on the runtime.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    loop {
        let Ok(place) = Arc::clone(&pages.places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        tokio::spawn(connection(stream, place, Arc::clone(&pages), false));
    }
}

/// `local`: it came over the local socket, from whom may do all that the agent may.
async fn connection<S>(stream: S, place: OwnedSemaphorePermit, pages: Arc<Pages>, local: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _place = place;
    let service = service_fn(move |request: Request<Incoming>| {
        let pages = Arc::clone(&pages);
        async move {
            let answered = if local { local::answer(&request, &pages).await } else { None };
            let response = match answered {
                Some(response) => response,
                None => answer(&request, &pages).await,
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "an admin connection failed");
    }
}

async fn answer(request: &Request<Incoming>, pages: &Arc<Pages>) -> Response<Body> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    let asks = &pages.asks;
    let answered = match request.uri().path() {
        "/" => {
            let mut page =
                respond(StatusCode::OK, "text/html; charset=utf-8", include_str!("admin/page.html").to_owned());
            page.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
            Ok(page)
        }
        "/livez" => ask(asks, Ask::Health).await.map(|_| text(StatusCode::OK, "ok\n")),
        "/readyz" => ask(asks, Ask::Health).await.map(|health| ready(&health)),
        "/metrics" => view(asks).await.map(|view| {
            let accept = request.headers().get(ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
            let format = metrics::Format::wanted(accept);
            respond(StatusCode::OK, format.content_type(), metrics::page(&view, format))
        }),
        "/status.json" => whole_status(request.uri().query().unwrap_or_default(), pages).await,
        path => Ok(text(StatusCode::NOT_FOUND, not_found(path))),
    };
    answered.unwrap_or_else(|error| text(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")))
}

fn not_found(path: &str) -> String {
    match local::PAGES.contains(&path) {
        true => "only on the local socket, in the network namespace of the agent: by kubectl exec in its pod, or nsenter -n -t AGENT_PID sluice-agent …\n"
            .to_owned(),
        false => "pages: / /livez /readyz /status.json /metrics\n".to_owned(),
    }
}

/// With `?fresh` connections are looked at now; else it shows what was seen lately, and has it looked at for the next time.
async fn whole_status(query: &str, pages: &Arc<Pages>) -> anyhow::Result<Response<Body>> {
    let view = Arc::new(view(&pages.asks).await?);
    let found = match (pages.found(SPREAD_AGAIN), pages.found(TOO_OLD)) {
        (Some(found), _) if query != "fresh" => found,
        (None, Some(found)) if query != "fresh" => {
            if pages.looking.try_lock().is_ok() {
                let (pages, view) = (Arc::clone(pages), Arc::clone(&view));
                tokio::spawn(async move { pages.look(&view).await.map(drop) });
            }
            found
        }
        _ => pages.look(&view).await?,
    };
    Ok(respond(StatusCode::OK, "application/json", status::page(&view, &found)))
}

async fn not_spread(asks: &Asks, view: &View) -> anyhow::Result<Vec<NotSpread>> {
    let cgroup = view.snapshot.cgroup.clone();
    let connections = tokio::task::spawn_blocking(move || pods::connections(&cgroup)).await?;
    let unknown = spread::unknown(view, &connections);
    let owners = match unknown.is_empty() {
        true => HashMap::new(),
        false => ask(asks, |sender| Ask::Owners(unknown, sender)).await?,
    };
    Ok(spread::not_spread(view, &connections, &owners))
}

async fn ask<T>(asks: &Asks, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> anyhow::Result<T> {
    let (sender, answer) = oneshot::channel();
    timeout(ANSWER_WITHIN, async {
        asks.send(question(sender)).await.ok()?;
        answer.await.ok()
    })
    .await
    .context("the agent's control loop does not answer")?
    .context("the agent is ending")
}

async fn view(asks: &Asks) -> anyhow::Result<View> {
    let snapshot = ask(asks, |sender| Ask::Snapshot(Box::new(sender))).await?;
    let answers: Vec<_> = snapshot.workers.iter().map(WorkerHandle::report).collect();
    let mut reports = Vec::new();
    // They hang together: who asks for the page does not wait for one after the other.
    let until = tokio::time::Instant::now() + ANSWER_WITHIN;
    for answer in answers {
        reports.push(timeout_at(until, answer).await.ok().and_then(Result::ok));
    }
    Ok(View { snapshot, reports })
}

fn ready(health: &Health) -> Response<Body> {
    let not = |why: String| text(StatusCode::SERVICE_UNAVAILABLE, why);
    match health.state {
        State::Ready => text(StatusCode::OK, "ok\n"),
        State::Syncing => {
            let problems = health.source_problems.iter().map(|problem| format!("{problem}\n")).collect::<String>();
            not(format!("waiting for all {}\n{problems}", health.missing.join(", ")))
        }
        State::Scanning => not("the node's pods are still being enrolled\n".to_owned()),
        State::Draining => not("draining: the agent was told to stop\n".to_owned()),
    }
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", body.into())
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(BoxBody::new(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
