//! Talks to the control listeners of the servers: what are you like, behave so, be well again. One connection an order.

use std::time::Duration;

use anyhow::{Context, bail};
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::plan::Fleet;
use crate::server::{Account, Behaviour};

/// How long an order may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A server by its control listener.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    control: String,
    account: Account,
}

impl Server {
    /// Asks the server at this control address what it is like, and makes it be well.
    pub(crate) async fn meet(control: &str) -> anyhow::Result<Self> {
        let account = order(control, &Behaviour::default()).await?;
        Ok(Self { control: control.to_owned(), account })
    }

    pub(crate) fn pod(&self) -> &str {
        &self.account.pod
    }

    pub(crate) async fn behave(&self, behaviour: &Behaviour) -> anyhow::Result<()> {
        order(&self.control, behaviour).await.map(drop)
    }
}

/// What all can do together; unknown if one has no limit or no server is known.
pub(crate) fn fleet(servers: &[Server]) -> Fleet {
    let time = |server: &Server| Some(server.account.service_time_us).filter(|&us| us > 0);
    let calls = |server: &Server| Some(server.account.slots? as f64 * 1e6 / time(server)? as f64);
    let sum: Option<f64> = servers.iter().map(calls).sum();
    Fleet {
        servers: servers.len() as u32,
        calls_per_second: sum.filter(|_| !servers.is_empty()),
        service_time: servers.first().and_then(time).map(Duration::from_micros),
    }
}

async fn order(control: &str, behaviour: &Behaviour) -> anyhow::Result<Account> {
    let ordered = tokio::time::timeout(ANSWER_WITHIN, put(control, behaviour)).await;
    ordered.unwrap_or_else(|_| bail!("no answer within {ANSWER_WITHIN:?}")).with_context(|| {
        format!("the control listener {control} does not obey; is it the --control of a running loadtest server?")
    })
}

async fn put(control: &str, behaviour: &Behaviour) -> anyhow::Result<Account> {
    let stream = TcpStream::connect(control).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its end shows in the answer.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::PUT)
        .uri("/")
        .header("host", control)
        .body(serde_json::to_string(behaviour)?)?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    if !head.status.is_success() {
        bail!("{}", String::from_utf8_lossy(&body).trim());
    }
    serde_json::from_slice(&body).context("its answer is not of this version")
}
