//! Connections that come and go, in all the ways in which they can end: nothing of them stays in the agent.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use socket2::SockRef;

use crate::scene::{Client, Scene, http2, run};
use crate::server::{OPEN, ask, body, call, serve_openly};

/// How a connection ends.
#[derive(Clone, Copy)]
enum End {
    /// With a call that is over.
    Idle,
    /// In the middle of a call.
    InACall,
    /// By a reset.
    Reset,
    /// Before it has said what it is.
    Silent,
}

async fn one(pod: &mut Client, end: End) -> Result<()> {
    let stream = pod.dial(1)?.remove(0);
    let socket = stream.try_clone()?;
    if matches!(end, End::Silent) {
        return Ok(());
    }
    let (client, _window) = http2(stream, OPEN).await?;
    ask(&client).await?;
    match end {
        End::InACall => drop(body(call(&client, "/hold", false).await?.0).await?),
        End::Reset => reset(&socket)?,
        End::Idle | End::Silent => {}
    }
    Ok(())
}

/// The close that follows will be a reset.
fn reset(socket: &TcpStream) -> Result<()> {
    Ok(SockRef::from(socket).set_linger(Some(Duration::ZERO))?)
}

async fn round(scene: &Scene, pod: &mut Client, count: usize) -> Result<()> {
    for number in 0..count {
        let end = [End::Idle, End::InACall, End::Reset, End::Silent][number % 4];
        one(pod, end).await?;
    }
    scene.wait_traffic(pod, "open_streams", 0).await?;
    scene.wait_traffic(pod, "undetected_connections", 0).await?;
    scene.wait_traffic(pod, "opaque_connections", 0).await?;
    scene.wait_traffic(pod, "http2_connections", scene.backends() as u64).await
}

fn churn(rounds: usize, count: usize) -> Result<()> {
    let (scene, listeners) = Scene::new(2)?;
    run(&scene, async {
        serve_openly(listeners)?;
        let mut pod = scene.client("client").await?;
        round(&scene, &mut pod, count).await?;
        let (descriptors, peak) = (scene.descriptors()?, scene.memory("the first round")?);
        for _ in 1..rounds {
            round(&scene, &mut pod, count).await?;
        }
        let last = scene.memory(&format!("{rounds} rounds of {count} connections"))?;
        // Its page is served on a connection of its own, which may be on its way out.
        scene
            .wait_for("the descriptors of the beginning", |_| (scene.descriptors().ok()? <= descriptors).then_some(()))
            .await?;
        ensure!(last <= peak + 2_048, "it grows: {peak} KiB after one round, {last} after {rounds}");
        Ok(())
    })
}

#[test]
fn connections_that_come_and_go_leave_nothing() -> Result<()> {
    churn(4, 60)
}

#[test]
#[ignore = "takes a minute: the full size"]
fn ten_thousand_connections_that_come_and_go_leave_nothing() -> Result<()> {
    churn(20, 500)
}
