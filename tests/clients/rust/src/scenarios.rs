//! The scenarios, in the order of ../README.md.
//! In: a client. Out: what was seen, or an error with the first expectation that failed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::expect::{
    UNICODE_MESSAGE, add_set, carries, connected_peers, counts, details, ended, failed_with, payload, pod_is, same,
    source_of, values, visible,
};
use crate::pb::{EchoRequest, EchoResponse};
use crate::{Client, Facts};

const MIB: usize = 1 << 20;

pub(crate) const NAMES: [&str; 13] = [
    "unary",
    "unary_spread",
    "client_stream",
    "server_stream",
    "bidi",
    "metadata",
    "deadline",
    "cancel",
    "error_details",
    "error_trailers_only",
    "error_after_messages",
    "large",
    "peer",
];

pub(crate) async fn run(name: &str, client: &mut Client, facts: &mut Facts) -> Result<String> {
    match name {
        "unary" => unary(client, facts).await,
        "unary_spread" => unary_spread(client, facts).await,
        "client_stream" => client_stream(client).await,
        "server_stream" => server_stream(client).await,
        "bidi" => bidi(client).await,
        "metadata" => metadata(client, facts).await,
        "deadline" => deadline(client).await,
        "cancel" => cancel(client).await,
        "error_details" => error_details(client, facts).await,
        "error_trailers_only" => error_trailers_only(client, facts).await,
        "error_after_messages" => error_after_messages(client, facts).await,
        "large" => large(client).await,
        "peer" => peer(client, facts).await,
        other => bail!("no scenario {other}"),
    }
}

impl Client {
    /// A unary call, with what every good response owes. tonic hands headers and trailers over as one map.
    async fn good(&mut self, request: impl tonic::IntoRequest<EchoRequest>) -> Result<Response<EchoResponse>> {
        let response = self.echo.unary(request).await?;
        pod_is(response.metadata(), response.get_ref())?;
        ended(response.metadata())?;
        Ok(response)
    }

    /// After a cancelled or expired call the channel takes the next ones.
    async fn works_on(&mut self) -> Result<()> {
        for _ in 0..3 {
            self.good(EchoRequest::default()).await?;
        }
        Ok(())
    }

    async fn bidi(&mut self, sent: MetadataMap) -> Result<Bidi> {
        let (outgoing, queue) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(queue));
        *request.metadata_mut() = sent;
        let mut client = self.echo.clone();
        // The response's head may come only after the first message is sent.
        let head = tokio::spawn(async move { client.bidi_stream(request).await });
        Ok(Bidi { outgoing: Some(outgoing), head: Some(head), headers: MetadataMap::new(), answers: None })
    }
}

type Head = tokio::task::JoinHandle<Result<Response<Streaming<EchoResponse>>, Status>>;

/// A bidirectional stream written and read message by message.
struct Bidi {
    outgoing: Option<mpsc::UnboundedSender<EchoRequest>>,
    head: Option<Head>,
    headers: MetadataMap,
    answers: Option<Streaming<EchoResponse>>,
}

impl Bidi {
    fn send(&self, request: EchoRequest) -> Result<()> {
        let Some(outgoing) = &self.outgoing else { bail!("our side is closed") };
        Ok(outgoing.send(request)?)
    }

    fn half_close(&mut self) {
        self.outgoing = None;
    }

    async fn answers(&mut self) -> Result<&mut Streaming<EchoResponse>, Status> {
        if let Some(head) = self.head.take() {
            let response = head.await.map_err(|error| Status::internal(error.to_string()))??;
            self.headers = response.metadata().clone();
            self.answers = Some(response.into_inner());
        }
        self.answers.as_mut().ok_or_else(|| Status::internal("the call failed before"))
    }

    async fn next(&mut self) -> Result<Option<EchoResponse>, Status> {
        self.answers().await?.message().await
    }

    async fn answered(&mut self, want: &[u8], messages: usize, size: usize) -> Result<()> {
        let Some(message) = self.next().await? else { bail!("the call ended early") };
        ensure!(message.payload == want, "payload: {} bytes are not the {} sent", message.payload.len(), want.len());
        counts(&message, messages, size)?;
        pod_is(&self.headers, &message)
    }

    /// Nothing more comes, and the end is a good one.
    async fn ends_well(&mut self) -> Result<MetadataMap> {
        same("after the half-close", self.next().await?, None)?;
        let trailers = self.answers().await?.trailers().await?.unwrap_or_default();
        ended(&trailers)?;
        Ok(trailers)
    }
}

/// The status that a call ended with; it must have failed.
fn failure<T>(outcome: Result<T, Status>) -> Result<Status> {
    match outcome {
        Ok(_) => bail!("the call succeeded, and must not"),
        Err(status) => Ok(status),
    }
}

fn with_payload(payload: Vec<u8>) -> EchoRequest {
    EchoRequest { payload, ..Default::default() }
}

async fn unary(client: &mut Client, facts: &mut Facts) -> Result<String> {
    for sent in [payload(6, 1), vec![]] {
        let response = client.good(with_payload(sent.clone())).await?;
        let message = response.get_ref();
        same("payload", &message.payload, &sent)?;
        counts(message, 1, sent.len())?;
        same("deadline_ms", message.deadline_ms, None)?;
        facts.insert("pod".into(), json!(message.pod));
        facts.insert("endpoint".into(), json!(values(response.metadata(), "x-sluice-endpoint").join(" ")));
    }
    let response = client.good(EchoRequest { response_size: 777, ..with_payload(payload(6, 1)) }).await?;
    same("payload's size", response.get_ref().payload.len(), 777)?;
    Ok("3 calls".into())
}

async fn unary_spread(client: &mut Client, facts: &mut Facts) -> Result<String> {
    let (mut pods, mut endpoints) = (BTreeMap::<_, u32>::new(), BTreeMap::<_, u32>::new());
    for _ in 0..50 {
        let response = client.good(EchoRequest::default()).await?;
        for endpoint in values(response.metadata(), "x-sluice-endpoint") {
            *endpoints.entry(endpoint).or_default() += 1;
        }
        *pods.entry(response.into_inner().pod).or_default() += 1;
    }
    facts.insert("pods".into(), json!(pods));
    facts.insert("endpoints".into(), json!(endpoints));
    Ok("50 calls".into())
}

async fn client_stream(client: &mut Client) -> Result<String> {
    let requests: Vec<_> = (0..20).map(|i| with_payload(payload(10 * i, i))).collect();
    let size = requests.iter().map(|r| r.payload.len()).sum();
    let response = client.echo.client_stream(tokio_stream::iter(requests)).await?;
    counts(response.get_ref(), 20, size)?;
    pod_is(response.metadata(), response.get_ref())?;
    ended(response.metadata())?;
    Ok(format!("20 messages, {size} bytes"))
}

async fn server_stream(client: &mut Client) -> Result<String> {
    let request = EchoRequest { response_count: 20, response_size: 100, ..with_payload(payload(7, 2)) };
    let response = client.echo.server_stream(request).await?;
    let headers = response.metadata().clone();
    let mut stream = response.into_inner();
    let mut answers = 0;
    while let Some(message) = stream.message().await? {
        same("payload's size", message.payload.len(), 100)?;
        counts(&message, 1, 7)?;
        pod_is(&headers, &message)?;
        answers += 1;
    }
    same("answers", answers, 20)?;
    ended(&stream.trailers().await?.unwrap_or_default())?;
    Ok("20 answers".into())
}

async fn bidi(client: &mut Client) -> Result<String> {
    let mut stream = client.bidi(MetadataMap::new()).await?;
    for i in 0..20 {
        stream.send(with_payload(payload(10, i)))?;
        stream.answered(&payload(10, i), i + 1, 10 * (i + 1)).await?;
    }
    stream.half_close();
    stream.ends_well().await?;
    let mut stream = client.bidi(MetadataMap::new()).await?;
    for i in 0..20 {
        stream.send(with_payload(payload(10, i)))?;
    }
    stream.half_close();
    for i in 0..20 {
        stream.answered(&payload(10, i), i + 1, 10 * (i + 1)).await?;
    }
    stream.ends_well().await?;
    Ok("20 + 20 messages".into())
}

async fn metadata(client: &mut Client, facts: &mut Facts) -> Result<String> {
    let mut sent = MetadataMap::new();
    add_set(&mut sent, "x-echo-")?;
    add_set(&mut sent, "x-echo-trailer-")?;
    let mut request = Request::new(EchoRequest::default());
    *request.metadata_mut() = sent.clone();
    let response = client.good(request).await?;
    carries("header or trailer", response.metadata(), &["x-echo-", "x-echo-trailer-"])?;
    let mut stream = client.bidi(sent).await?;
    stream.send(EchoRequest::default())?;
    stream.answered(&[], 1, 0).await?;
    stream.half_close();
    let trailers = stream.ends_well().await?;
    facts.insert("headers".into(), json!(visible(&stream.headers)));
    facts.insert("trailers".into(), json!(visible(&trailers)));
    carries("header", &stream.headers, &["x-echo-"])?;
    carries("trailer", &trailers, &["x-echo-trailer-"])?;
    Ok("unary and bidi".into())
}

async fn deadline(client: &mut Client) -> Result<String> {
    let mut request = Request::new(EchoRequest::default());
    request.set_timeout(Duration::from_secs(60));
    let seen = client.good(request).await?.get_ref().deadline_ms;
    ensure!(seen.is_some_and(|ms| (50_000..=61_000).contains(&ms)), "deadline_ms: got {seen:?}, want about 60000");
    let soon = || {
        let mut request = Request::new(EchoRequest { delay_ms: 5000, response_count: 2, ..Default::default() });
        request.set_timeout(Duration::from_millis(300));
        request
    };
    expired(&failure(client.echo.unary(soon()).await)?)?;
    let outcome = match client.echo.server_stream(soon()).await {
        Ok(response) => response.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    expired(&failure(outcome)?)?;
    client.works_on().await?;
    Ok("60 s seen; expired twice".into())
}

/// tonic reports an expiry of its own as CANCELLED, and watches the deadline only until the response's head: whichever
/// of client and server is first may say so.
fn expired(status: &Status) -> Result<()> {
    let own = status.code() == Code::Cancelled && status.message() == "Timeout expired";
    ensure!(own || status.code() == Code::DeadlineExceeded, "status: got {status:?}, want an expired deadline");
    Ok(())
}

/// tonic cancels by dropping the call, so no status is there to be seen.
async fn cancel(client: &mut Client) -> Result<String> {
    let slow = EchoRequest { delay_ms: 20, ..Default::default() };
    let flood = EchoRequest { response_size: 1000, ..Default::default() };
    for kind in [slow, flood] {
        let request = EchoRequest { response_count: 100_000, ..kind };
        let mut stream = client.echo.server_stream(request).await?.into_inner();
        for _ in 0..3 {
            ensure!(stream.next().await.transpose()?.is_some(), "the call ended early");
        }
        drop(stream);
        client.works_on().await?;
    }
    let mut stream = client.bidi(MetadataMap::new()).await?;
    for i in 0..3 {
        stream.send(EchoRequest::default())?;
        stream.answered(&[], i + 1, 0).await?;
    }
    drop(stream);
    client.works_on().await?;
    Ok("dropped three times".into())
}

async fn error_details(client: &mut Client, facts: &mut Facts) -> Result<String> {
    for n in 1..=300 {
        let code = 1 + n % 16;
        let request = EchoRequest {
            fail_code: u32::try_from(code)?,
            fail_message: UNICODE_MESSAGE.into(),
            fail_details: details(n),
            ..Default::default()
        };
        let status = failure(client.echo.unary(request).await)?;
        failed_with(&status, Code::from(i32::try_from(code)?), UNICODE_MESSAGE)?;
        ended(status.metadata())?;
        same("details", status.details(), details(n))?;
        facts.insert("trailers".into(), json!(visible(status.metadata())));
    }
    Ok("300 failures".into())
}

async fn error_trailers_only(client: &mut Client, facts: &mut Facts) -> Result<String> {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc.ready().await?;
    let codec = tonic_prost::ProstCodec::<EchoRequest, EchoResponse>::default();
    let path = PathAndQuery::from_static("/sluice.loadtest.v1.Echo/NoSuchMethod");
    let status = failure(grpc.unary(Request::new(EchoRequest::default()), path, codec).await)?;
    same("status", status.code(), Code::Unimplemented)?;
    let request = EchoRequest { fail_code: 5, fail_message: "no such thing".into(), ..Default::default() };
    let status = failure(client.echo.unary(request).await)?;
    facts.insert("trailers".into(), json!(visible(status.metadata())));
    failed_with(&status, Code::NotFound, "no such thing")?;
    ended(status.metadata())?;
    Ok("UNIMPLEMENTED, NOT_FOUND".into())
}

async fn error_after_messages(client: &mut Client, facts: &mut Facts) -> Result<String> {
    let request = EchoRequest {
        response_count: 5,
        fail_code: 9,
        fail_message: UNICODE_MESSAGE.into(),
        fail_details: details(40),
        ..Default::default()
    };
    let mut stream = client.echo.server_stream(request).await?.into_inner();
    for _ in 0..5 {
        ensure!(stream.message().await?.is_some(), "the call ended early");
    }
    let status = failure(stream.message().await)?;
    failed_with(&status, Code::FailedPrecondition, UNICODE_MESSAGE)?;
    ended(status.metadata())?;
    same("details", status.details(), details(40))?;
    facts.insert("trailers".into(), json!(visible(status.metadata())));
    let mut stream = client.bidi(MetadataMap::new()).await?;
    for i in 0..3 {
        stream.send(with_payload(payload(10, i)))?;
        stream.answered(&payload(10, i), i + 1, 10 * (i + 1)).await?;
    }
    stream.send(EchoRequest { fail_code: 10, fail_message: "enough".into(), ..Default::default() })?;
    let status = loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => bail!("the call ended well, and must not"),
            Err(status) => break status,
        }
    };
    failed_with(&status, Code::Aborted, "enough")?;
    ended(status.metadata())?;
    Ok("FAILED_PRECONDITION after 5, ABORTED after 3".into())
}

async fn large(client: &mut Client) -> Result<String> {
    let response = client.good(with_payload(payload(MIB, 3))).await?;
    ensure!(response.get_ref().payload == payload(MIB, 3), "the payload came back changed");
    counts(response.get_ref(), 1, MIB)?;
    let mut stream = client.bidi(MetadataMap::new()).await?;
    for i in 0..4 {
        stream.send(with_payload(payload(MIB, i)))?;
        stream.answered(&payload(MIB, i), i + 1, (i + 1) * MIB).await?;
    }
    stream.half_close();
    stream.ends_well().await?;
    Ok("1 + 4 MiB each way".into())
}

async fn peer(client: &mut Client, facts: &mut Facts) -> Result<String> {
    let response = client.good(EchoRequest::default()).await?;
    let (peers, source) = (connected_peers()?, source_of(response.get_ref())?);
    facts.insert("peer".into(), json!(peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")));
    facts.insert("source".into(), json!(source));
    if client.options.expect_peer {
        same("peer", peers, BTreeSet::from([client.options.target]))?;
    }
    if let Some(want) = client.options.expect_source {
        same("source", source, want)?;
    }
    Ok("seen".into())
}
