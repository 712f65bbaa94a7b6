//! Streams and connections in large numbers, all open at once.

use anyhow::{Result, ensure};

use crate::scene::{Client, Scene, run};
use crate::server::{ask, body, call, serve_openly};

/// Opens idle streams, as many a connection as it allows.
fn idle_streams(count: usize) -> Result<()> {
    let (scene, listeners) = Scene::new(2)?;
    run(&scene, async {
        serve_openly(listeners)?;
        let mut pod = scene.client("client").await?;
        let mut idle = Vec::new();
        let mut connections = Vec::new();
        while idle.len() < count {
            let client = pod.connect().await?;
            // Its SETTINGS have come with the first answer.
            ask(&client).await?;
            for _ in idle.len()..count.min(idle.len() + client.current_max_send_streams()) {
                let (response, request) = call(&client, "/hold", false).await?;
                idle.push((body(response).await?, request));
            }
            connections.push(client);
        }
        scene.wait_traffic(&pod, "open_streams", count as u64).await?;
        ask(&pod.connect().await?).await?;
        println!("{count} idle streams on {} connections", connections.len());
        scene.memory(&format!("{count} idle streams"))?;
        // Half of them end as they should, the others by reset.
        for (number, (_, mut request)) in idle.drain(..).enumerate() {
            if number % 2 == 0 {
                request.send_data(Default::default(), true)?;
            } else {
                request.send_reset(h2::Reason::CANCEL);
            }
        }
        scene.wait_traffic(&pod, "open_streams", 0).await
    })
}

#[test]
fn a_thousand_idle_streams_cost_little_and_leave_nothing() -> Result<()> {
    idle_streams(1_000)
}

#[test]
#[ignore = "takes a minute: the full size"]
fn five_thousand_idle_streams_cost_little_and_leave_nothing() -> Result<()> {
    idle_streams(5_000)
}

/// Connections with a call each, and one stream left open on each.
fn connections(count: usize) -> Result<()> {
    let (scene, listeners) = Scene::new(3)?;
    run(&scene, async {
        serve_openly(listeners)?;
        let mut pod = scene.client("client").await?;
        let mut open = Vec::new();
        for _ in 0..count {
            let client = pod.connect().await?;
            ask(&client).await?;
            let (response, request) = call(&client, "/hold", false).await?;
            open.push((client, body(response).await?, request));
        }
        ensure!(http2(&scene, &pod)? == (count + scene.backends()) as u64, "endpoints' connections are shared");
        scene.memory(&format!("{count} connections"))?;
        for (client, ..) in &open {
            ask(client).await?;
        }
        drop(open);
        scene.wait_traffic(&pod, "open_streams", 0).await?;
        scene.wait_traffic(&pod, "http2_connections", scene.backends() as u64).await
    })
}

fn http2(scene: &Scene, pod: &Client) -> Result<u64> {
    scene.traffic(pod, "http2_connections")
}

#[test]
fn two_hundred_connections_are_served_at_once() -> Result<()> {
    connections(200)
}

#[test]
#[ignore = "takes a minute: the full size"]
fn a_thousand_connections_are_served_at_once() -> Result<()> {
    connections(1_000)
}
