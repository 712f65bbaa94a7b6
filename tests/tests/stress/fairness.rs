//! A pod that keeps the agent busy, and another one's calls.

use anyhow::{Result, ensure};

use crate::scene::{Scene, http2, run};
use crate::server::{OPEN, TAKEN, ask, call, give, serve_openly};

/// Of the calm pod.
const CALLS: usize = 100;

#[test]
fn fifty_busy_connections_of_one_pod_cost_another_pod_no_call() -> Result<()> {
    let (scene, listeners) = Scene::new(2)?;
    run(&scene, async {
        serve_openly(listeners)?;
        let (mut busy, mut calm) = (scene.client("busy").await?, scene.client("calm").await?);
        let mut senders = Vec::new();
        for stream in busy.dial(50)? {
            let (client, window) = http2(stream, OPEN).await?;
            let (response, mut request) = call(&client, "/take", false).await?;
            senders.push(tokio::spawn(async move {
                let _open = (client, window, response);
                // Many small frames are the most work per byte.
                give(&mut request, usize::MAX, 256).await
            }));
        }
        let (client, before) = (calm.connect().await?, TAKEN.get());
        for _ in 0..CALLS {
            ask(&client).await?;
        }
        println!("{} bytes of the busy pod arrived during {CALLS} calls of the calm one", TAKEN.get() - before);
        ensure!(TAKEN.get() - before > CALLS * 256, "the busy pod was not busy");
        ensure!(senders.iter().all(|sender| !sender.is_finished()), "a busy connection broke");
        ensure!(scene.traffic(&busy, "floods")? == 0 && scene.traffic(&calm, "streams_failed")? == 0);
        scene.memory("50 busy connections").map(drop)
    })
}
