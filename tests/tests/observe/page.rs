//! The page for people, in a browser, against a live agent with traffic.

use anyhow::{Result, ensure};
use testbed::Node;
use testbed::scene::{Backend, PORT, in_turn, serve, with_log};

use crate::scene::{calls, load};

#[test]
fn the_page_shows_services_and_shares_in_a_browser() -> Result<()> {
    let node = Node::new()?;
    let backends =
        ["one", "two", "three"].map(|name| Backend::start(&node, name)).into_iter().collect::<Result<Vec<_>>>()?;
    let service = serve(&node, in_turn("echo"), backends.iter().map(|it| &it.pod))?;
    let client = node.pod("client")?;
    let agent = node.agent().workers(2).start()?;
    calls(&client, &service, &["--rpcs", "100"])?;
    let _load = load(&client, &service, &["--rate", "100", "--duration", "600s"])?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/page/check.py");
    let (url, endpoint) = (format!("http://{}/", agent.admin()), format!("{}:{PORT}", backends[1].pod.ip4()));
    // Each pod behind the Service has an address in both families, and is one endpoint.
    let tiles = ["Endpoints ejected or unreachable=0 of 3", "Services dialled=1 of 1", "Pods that call=1 of 4"];
    let looked = [&*url, "default/echo:grpc", &endpoint, "two"];
    let check = node.command("python3").arg(script).args(looked).args(tiles).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    println!("{said}");
    with_log(&agent, if check.status.success() { Ok(()) } else { Err(anyhow::anyhow!("{script}: {said}")) })?;
    ensure!(said.contains("the page shows what it should"), "{said}");
    Ok(())
}
