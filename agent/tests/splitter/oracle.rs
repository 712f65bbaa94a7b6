//! The `h2` crate as client and as server on both sides of the splitter: whatever the one says, the other hears, and the
//! other way round. Calls of all shapes from a seeded generator; each seed runs with other chunking and other limits.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use sluice_agent::splitter::Limits;

use crate::world::{Chunks, Pipe, World, endpoint};

/// How a call is to go, told to both sides.
#[derive(Clone, Debug)]
struct Call {
    path: String,
    metadata: Vec<(String, Vec<u8>)>,
    request: Vec<usize>,
    request_trailers: bool,
    /// The client resets after this many request messages.
    cancel_after: Option<usize>,
    /// The endpoint reads the whole request before it answers.
    read_first: bool,
    response: Vec<usize>,
    ending: Ending,
}

#[derive(Clone, Debug)]
enum Ending {
    Trailers,
    TrailersOnly,
    Plain,
    Reset(u32),
}

impl Call {
    /// `largest`: of a message, bytes.
    fn random(rng: &mut fastrand::Rng, largest: usize) -> Self {
        let sizes = |rng: &mut fastrand::Rng| -> Vec<usize> {
            let biggest = largest.min(*rng.choice(&[0_usize, 5, 100, 20_000, 300_000]).unwrap());
            (0..rng.usize(0..5)).map(|_| rng.usize(0..=biggest)).collect()
        };
        let ending = match rng.u8(0..10) {
            0 => Ending::Reset(*rng.choice(&[1, 2, 8, 11, 0xdead]).unwrap()),
            1 | 2 => Ending::TrailersOnly,
            3 => Ending::Plain,
            _ => Ending::Trailers,
        };
        let request = sizes(rng);
        Self {
            path: format!("/pkg.Svc/Method{}", rng.u8(0..5)),
            metadata: (0..rng.usize(0..6))
                .map(|_| {
                    let name = format!("x-meta-{}{}", rng.u8(0..3), if rng.bool() { "-bin" } else { "" });
                    let value = (0..rng.usize(0..60)).map(|_| rng.u8(b'!'..=b'~')).collect();
                    (name, value)
                })
                .collect(),
            cancel_after: (rng.u8(0..12) == 0).then(|| rng.usize(0..=request.len())),
            request,
            request_trailers: rng.u8(0..8) == 0,
            read_first: rng.bool(),
            response: sizes(rng),
            ending,
        }
    }
}

/// What one side heard of a call.
#[derive(Clone, Debug, Default, PartialEq)]
struct Heard {
    head: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Option<Vec<(String, Vec<u8>)>>,
    reset: Option<u32>,
}

type Books = Rc<RefCell<HashMap<usize, Heard>>>;

fn fields(map: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    // `HeaderMap` keeps the order of one name's values, not that of different names.
    let mut fields: Vec<_> = map.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn put(map: &mut HeaderMap, metadata: &[(String, Vec<u8>)]) {
    for (name, value) in metadata {
        let mut value = HeaderValue::from_bytes(value).unwrap();
        value.set_sensitive(name.contains("2"));
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
    }
}

/// Message `n` of a call: bytes that tell where they belong.
fn message(call: usize, n: usize, size: usize) -> Bytes {
    let cycle: [u8; 256] = std::array::from_fn(|i| (call * 31 + n * 7 + i) as u8);
    let mut bytes = cycle.repeat(size.div_ceil(256));
    bytes.truncate(size);
    bytes.into()
}

/// Sends within the window, however small. `Err`: the stream was reset.
async fn send(stream: &mut h2::SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    if data.is_empty() {
        return if end { stream.send_data(data, true) } else { Ok(()) };
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(n)) => {
                let piece = data.split_to(n.min(data.len()));
                let last = end && data.is_empty();
                stream.send_data(piece, last)?;
            }
            Some(Err(error)) => return Err(error),
            None => return Err(h2::Reason::CANCEL.into()),
        }
    }
    Ok(())
}

/// Hears a body and its trailers, giving credit as it goes.
async fn hear(mut body: h2::RecvStream, heard: &mut Heard) {
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                let _ = body.flow_control().release_capacity(data.len());
                heard.body.extend_from_slice(&data);
            }
            Err(error) => {
                heard.reset = error.reason().map(u32::from);
                return;
            }
        }
    }
    match body.trailers().await {
        Ok(trailers) => heard.trailers = trailers.as_ref().map(fields),
        Err(error) => heard.reset = error.reason().map(u32::from),
    }
}

async fn serve(pipe: Pipe, calls: Rc<Vec<Call>>, books: Books, max_streams: u32) {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(max_streams)
        .initial_window_size(40_000)
        .max_send_buffer_size(1 << 20)
        .handshake::<_, Bytes>(pipe)
        .await
        .expect("the splitter's preface");
    while let Some(request) = connection.accept().await {
        let Ok((request, respond)) = request else { return };
        tokio::task::spawn_local(answer(request, respond, Rc::clone(&calls), Rc::clone(&books)));
    }
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    calls: Rc<Vec<Call>>,
    books: Books,
) {
    let (parts, body) = request.into_parts();
    let id: usize = parts.headers["x-call"].to_str().unwrap().parse().unwrap();
    let call = &calls[id];
    let mut heard = Heard { head: fields(&parts.headers), ..Heard::default() };
    heard.head.push((":path".into(), parts.uri.path().into()));
    if call.read_first {
        hear(body, &mut heard).await;
        books.borrow_mut().insert(id, heard);
        respond_as(call, id, &mut respond).await;
    } else {
        let reading = tokio::task::spawn_local(async move {
            hear(body, &mut heard).await;
            books.borrow_mut().insert(id, heard);
        });
        respond_as(call, id, &mut respond).await;
        let _ = reading.await;
    }
}

async fn respond_as(call: &Call, id: usize, respond: &mut h2::server::SendResponse<Bytes>) {
    let mut response = Response::new(());
    put(response.headers_mut(), &call.metadata);
    if matches!(call.ending, Ending::TrailersOnly) {
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
        let _ = respond.send_response(response, true);
        return;
    }
    if let Ending::Reset(code) = call.ending
        && call.response.is_empty()
    {
        respond.send_reset(code.into());
        return;
    }
    let Ok(mut stream) = respond.send_response(response, false) else { return };
    let plain = matches!(call.ending, Ending::Plain);
    for (n, size) in call.response.iter().enumerate() {
        let last = plain && n + 1 == call.response.len();
        if send(&mut stream, message(id, n, *size), last).await.is_err() {
            return;
        }
    }
    match call.ending {
        Ending::Trailers => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            put(&mut trailers, &call.metadata);
            let _ = stream.send_trailers(trailers);
        }
        Ending::Reset(code) => stream.send_reset(code.into()),
        Ending::Plain if call.response.is_empty() => {
            let _ = stream.send_data(Bytes::new(), true);
        }
        Ending::Plain | Ending::TrailersOnly => {}
    }
}

async fn make_call(mut client: h2::client::SendRequest<Bytes>, id: usize, call: Call, books: Books) {
    let mut request =
        Request::builder().method("POST").uri(format!("http://echo:50051{}", call.path)).body(()).unwrap();
    request.headers_mut().insert("x-call", HeaderValue::from(id as u64));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    put(request.headers_mut(), &call.metadata);
    let mut heard = Heard::default();
    poll_fn(|cx| client.poll_ready(cx)).await.expect("the client's connection");
    let whole = call.request.is_empty() && !call.request_trailers && call.cancel_after.is_none();
    let (response, mut stream) = client.send_request(request, whole).expect("a new stream");
    let cancelled = call.cancel_after.is_some();
    let sending = async {
        for (n, size) in call.request.iter().enumerate() {
            if call.cancel_after == Some(n) {
                break;
            }
            let last = n + 1 == call.request.len() && !call.request_trailers && !cancelled;
            if send(&mut stream, message(id, n, *size), last).await.is_err() {
                return;
            }
        }
        if cancelled {
            stream.send_reset(h2::Reason::CANCEL);
        } else if call.request_trailers {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_static("here"));
            let _ = stream.send_trailers(trailers);
        }
    };
    let hearing = async {
        match response.await {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                heard.head = fields(&parts.headers);
                hear(body, &mut heard).await;
            }
            Err(error) => heard.reset = error.reason().map(u32::from),
        }
    };
    tokio::join!(sending, hearing);
    books.borrow_mut().insert(id, heard);
}

fn expected_metadata(call: &Call, more: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    let mut fields = call.metadata.clone();
    fields.extend(more.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())));
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn body(id: usize, sizes: &[usize]) -> Vec<u8> {
    sizes.iter().enumerate().map(|(n, size)| message(id, n, *size)).collect::<Vec<_>>().concat()
}

/// What each side must have heard of call `id`.
fn check(seed: u64, id: usize, call: &Call, at_endpoint: Option<&Heard>, at_client: &Heard) {
    let context = || format!("seed {seed}, call {id}: {call:?}");
    if call.cancel_after.is_some() {
        // The client went; the endpoint, if the call ever reached it, was told so.
        if let Some(heard) = at_endpoint
            && heard.reset.is_none()
        {
            panic!("{}: the endpoint was not told of the cancellation: {heard:?}", context());
        }
        return;
    }
    let reset = if let Ending::Reset(code) = call.ending { Some(code) } else { None };
    let heard = at_endpoint.unwrap_or_else(|| panic!("{}: it never reached an endpoint", context()));
    let id_text = id.to_string();
    let extra = [("x-call", id_text.as_str()), ("te", "trailers"), ("content-type", "application/grpc")];
    let mut head = expected_metadata(call, &extra);
    head.push((":path".into(), call.path.clone().into_bytes()));
    assert_eq!(heard.head, head, "{}", context());
    if call.read_first {
        assert_eq!(heard.body, body(id, &call.request), "{}", context());
        let trailers = call.request_trailers.then(|| vec![("x-end".to_string(), b"here".to_vec())]);
        assert_eq!(heard.trailers, trailers, "{}", context());
    }
    if let Some(code) = reset {
        assert_eq!(at_client.reset, Some(code), "{}", context());
        return;
    }
    assert_eq!(at_client.reset, None, "{}", context());
    match call.ending {
        Ending::TrailersOnly => {
            assert_eq!(at_client.head, expected_metadata(call, &[("grpc-status", "5")]), "{}", context());
            assert_eq!((at_client.body.len(), &at_client.trailers), (0, &None), "{}", context());
        }
        _ => {
            assert_eq!(at_client.head, expected_metadata(call, &[]), "{}", context());
            assert_eq!(at_client.body, body(id, &call.response), "{}", context());
            let trailers = expected_metadata(call, &[("grpc-status", "0")]);
            let trailers = matches!(call.ending, Ending::Trailers).then_some(trailers);
            assert_eq!(at_client.trailers, trailers, "{}", context());
        }
    }
}

async fn differential(seed: u64, calls: usize, clients: usize, endpoints: u8, chunks: Chunks, max_streams: u32) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let largest = if matches!(chunks, Chunks::One) { 300 } else { usize::MAX };
    let calls: Rc<Vec<Call>> = Rc::new((0..calls).map(|_| Call::random(&mut rng, largest)).collect());
    let addrs: Vec<_> = (1..=endpoints).map(endpoint).collect();
    let limits = Limits { output_high: 40_000, ..Limits::default() };
    let mut world = World::new(seed, chunks, limits, &addrs);
    let at_endpoints = Books::default();
    let at_clients = Books::default();
    let mut running = Vec::new();
    for n in 0..clients {
        let (_, pipe) = world.connect();
        let (calls, books) = (Rc::clone(&calls), Rc::clone(&at_clients));
        running.push(tokio::task::spawn_local(async move {
            let (client, connection) = h2::client::Builder::new()
                .initial_window_size(50_000)
                .handshake::<_, Bytes>(pipe)
                .await
                .expect("the splitter's SETTINGS");
            let connection = tokio::task::spawn_local(connection);
            let mine = (0..calls.len()).filter(|id| id % clients == n);
            let tasks: Vec<_> = mine
                .map(|id| {
                    let call = make_call(client.clone(), id, calls[id].clone(), Rc::clone(&books));
                    tokio::task::spawn_local(call)
                })
                .collect();
            for task in tasks {
                task.await.expect("a call's task");
            }
            drop(client);
            connection.await.expect("the connection's task").expect("a clean end of the connection");
        }));
    }
    // The pump: moves bytes until every call has ended; stuck means that nothing moves and nobody wakes.
    let mut idle = 0;
    while running.iter().any(|task| !task.is_finished()) {
        let mut moved = world.step();
        for backlog in world.accepted.values_mut() {
            for pipe in backlog.drain(..) {
                moved = true;
                let (calls, books) = (Rc::clone(&calls), Rc::clone(&at_endpoints));
                tokio::task::spawn_local(serve(pipe, calls, books, max_streams));
            }
        }
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        idle = if moved { 0 } else { idle + 1 };
        assert!(idle < 1_000, "seed {seed}: stuck with {:?}", world.splitter);
    }
    for task in running {
        task.await.expect("a client's task");
    }
    for _ in 0..100 {
        world.step();
        tokio::task::yield_now().await;
    }
    for (id, call) in calls.iter().enumerate() {
        check(seed, id, call, at_endpoints.borrow().get(&id), &at_clients.borrow()[&id]);
    }
    let stats = world.stats();
    assert_eq!((stats.open_streams, stats.streams), (0, calls.len() as u64), "seed {seed}: {stats:?}");
    assert_eq!((stats.protocol_errors, stats.floods, stats.streams_failed), (0, 0, 0), "seed {seed}: {stats:?}");
}

fn run(seeds: std::ops::Range<u64>, chunks: Chunks) {
    let one = std::env::var("SLUICE_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in one.map_or(seeds, |seed: u64| seed..seed + 1) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rng = fastrand::Rng::with_seed(seed);
        let (calls, clients, endpoints) = (rng.usize(1..60), rng.usize(1..4), rng.u8(1..5));
        let max_streams = *rng.choice(&[1, 3, 100]).unwrap();
        let test = differential(seed, calls, clients, endpoints, chunks, max_streams);
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }
}

#[test]
fn what_one_side_says_the_other_hears() {
    run(0..60, Chunks::Whole);
}

#[test]
fn what_one_side_says_the_other_hears_in_chunks_of_chance() {
    run(1000..1060, Chunks::Random);
}

#[test]
fn what_one_side_says_the_other_hears_byte_by_byte() {
    run(2000..2003, Chunks::One);
}
