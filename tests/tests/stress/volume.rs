//! Bytes: many small messages for a peer that stalls, and large streams for one that reads slowly, in both directions.

use anyhow::{Result, ensure};
use tokio::sync::watch;

use crate::scene::{Scene, http2, run, soon};
use crate::server::{OPEN, body, call, give, serve, serve_openly, status, take};

const MESSAGES: usize = 10_000;
const MEBIBYTE: usize = 1024 * 1024;

#[test]
fn ten_thousand_messages_of_one_byte_wait_for_an_endpoint_that_stalls() -> Result<()> {
    let (scene, listeners) = Scene::new(1)?;
    run(&scene, async {
        let window = watch::channel(0).0;
        serve(listeners, &window)?;
        let mut pod = scene.client("client").await?;
        let client = pod.connect().await?;
        let (response, mut request) = call(&client, "/take", false).await?;
        give(&mut request, MESSAGES, 1).await?;
        request.send_data(Default::default(), true)?;
        let mut body = body(response).await?;
        ensure!(scene.traffic(&pod, "open_streams")? == 1 && scene.traffic(&pod, "floods")? == 0);
        window.send_replace(OPEN);
        ensure!(soon(take(&mut body, false)).await?? == 0);
        ensure!(status(&mut body).await? == format!("0-{MESSAGES}"));
        scene.memory("messages of one byte for an endpoint")?;
        scene.wait_traffic(&pod, "open_streams", 0).await
    })
}

#[test]
fn ten_thousand_messages_of_one_byte_wait_for_a_client_that_stalls() -> Result<()> {
    let (scene, listeners) = Scene::new(1)?;
    run(&scene, async {
        serve_openly(listeners)?;
        let mut pod = scene.client("client").await?;
        let (client, window) = http2(pod.dial(1)?.remove(0), 0).await?;
        let (response, _request) = call(&client, &format!("/drip/{MESSAGES}"), true).await?;
        let mut body = body(response).await?;
        window.send_replace(OPEN);
        ensure!(soon(take(&mut body, false)).await?? == MESSAGES);
        ensure!(status(&mut body).await? == "0");
        scene.memory("messages of one byte for a client")?;
        scene.wait_traffic(&pod, "open_streams", 0).await
    })
}

/// To an endpoint and then to a client, each of which reads slowly.
fn stream(mebibytes: usize) -> Result<()> {
    let (scene, listeners) = Scene::new(2)?;
    let count = mebibytes * MEBIBYTE;
    run(&scene, async {
        serve_openly(listeners)?;
        let mut pod = scene.client("client").await?;
        let client = pod.connect().await?;
        let (response, mut request) = call(&client, "/take/slowly", false).await?;
        give(&mut request, count, usize::MAX).await?;
        request.send_data(Default::default(), true)?;
        let mut received = body(response).await?;
        ensure!(take(&mut received, false).await? == 0);
        ensure!(status(&mut received).await? == format!("0-{count}"));
        scene.memory(&format!("{mebibytes} MiB to an endpoint"))?;

        let (response, _request) = call(&client, &format!("/give/{count}"), true).await?;
        let mut received = body(response).await?;
        ensure!(take(&mut received, true).await? == count);
        ensure!(status(&mut received).await? == "0");
        scene.memory(&format!("{mebibytes} MiB to a client"))?;
        scene.wait_traffic(&pod, "open_streams", 0).await
    })
}

#[test]
fn a_large_stream_reaches_slow_readers_on_both_sides_unharmed() -> Result<()> {
    stream(32)
}

#[test]
#[ignore = "takes minutes: the full size"]
fn a_gibibyte_reaches_slow_readers_on_both_sides_unharmed() -> Result<()> {
    stream(1024)
}

/// Each of the connections has more to send than anybody holds for it, to endpoints that take nothing.
#[test]
fn a_hundred_connections_that_fill_all_windows_stay_within_the_budget() -> Result<()> {
    let (scene, listeners) = Scene::new(2)?;
    run(&scene, async {
        serve(listeners, &watch::channel(0).0)?;
        let mut pod = scene.client("client").await?;
        let mut held = Vec::new();
        for stream in pod.dial(100)? {
            let (client, window) = http2(stream, OPEN).await?;
            for _ in 0..4 {
                let (response, mut request) = call(&client, "/take", false).await?;
                tokio::spawn(async move { give(&mut request, MEBIBYTE, usize::MAX).await });
                held.push(response);
            }
            held_open(client, window);
        }
        scene.wait_traffic(&pod, "open_streams", 400).await?;
        // The pod itself may still make a call, and it is the agent that holds no more.
        for _ in 0..200 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        scene.memory("100 connections of full windows").map(drop)
    })
}

/// The connection lives as long as these.
fn held_open(client: h2::client::SendRequest<bytes::Bytes>, window: watch::Sender<u32>) {
    tokio::spawn(async move {
        let _both = (client, window);
        std::future::pending::<()>().await;
    });
}
