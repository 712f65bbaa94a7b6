//! Who may look: processes of the agent's own user and root, beside the agent. Others get nothing that shows calls or changes
//! something, and are told why.

use anyhow::{Result, ensure};
use testbed::Node;
use testbed::scene::{in_turn, serve, wait_for};

use crate::cli::Cli;
use crate::peers::{ADD, Client, Endpoint};

#[test]
fn another_user_is_refused_with_a_clear_word_and_is_shown_nothing() -> Result<()> {
    let node = Node::new()?;
    let agent = node.agent().start()?;
    let cli = Cli::new(&node, &agent);
    // Where everybody may run it: a build folder may be its owner's alone.
    let program = std::env::temp_dir().join(format!("sluice-agent-{}", std::process::id()));
    std::fs::copy(testbed::program("sluice-agent")?, &program)?;
    let refused = || -> Result<()> {
        for page in ["status", "top", "tap", "log-level", "maps"] {
            let other = ["--reuid=65534", "--regid=65534", "--clear-groups"];
            let args = if page == "top" { &["--count", "1"][..] } else { &[] };
            let command = node.command("setpriv").args(other).arg(&program).arg(page).args(args);
            let said = command.args(["--admin", &agent.admin().to_string()]).current_dir("/").output()?;
            let why = String::from_utf8_lossy(&said.stderr);
            ensure!(!said.status.success() && said.stdout.is_empty(), "{page}: {said:?}");
            ensure!(why.contains("run this as the agent's user"), "{page}: {why}");
            println!("{page}: {}", why.trim());
        }
        Ok(())
    };
    let result = refused();
    std::fs::remove_file(&program)?;
    result?;
    ensure!(agent.log()?.matches("a local connection of another user was refused").count() == 5);
    ensure!(cli.taps()? == 0);
    cli.say(&["status"]).map(drop)
}

#[test]
fn over_the_network_nothing_shows_calls_or_changes_something() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let service = serve(&node, in_turn("shop"), [&endpoint.pod])?;
    let client = Client::start(&node, "client")?;
    let agent = node.agent().start()?;
    client.connect(service.address4())?.call(ADD, &[])?;
    for page in ["/tap", "/tap?frames=1", "/maps.json", "/log-level", "/log-level?bpf=trace"] {
        let answer = agent.get(page)?;
        ensure!(answer.status == 404 && answer.body.contains("only on the local socket"), "{page}: {answer:?}");
    }
    let levels = Cli::new(&node, &agent).say(&["log-level"])?;
    ensure!(levels == "kernel programs: off\nagent: info\n", "{levels}");
    for page in ["/", "/livez", "/readyz", "/status.json", "/metrics"] {
        ensure!(agent.get(page)?.status == 200, "{page}");
    }
    Ok(())
}

#[test]
fn where_no_agent_listens_those_that_do_are_named() -> Result<()> {
    let node = Node::new()?;
    let agent = node.agent().start()?;
    let command = || Ok::<_, anyhow::Error>(node.command(testbed::program("sluice-agent")?).arg("status"));
    let said = command()?.args(["--admin", "127.0.0.1:9"]).output()?;
    let why = String::from_utf8_lossy(&said.stderr);
    ensure!(!said.status.success() && why.contains(&format!("here listen: {}", agent.admin())), "{why}");
    // An agent that has ended is none.
    let admin = agent.admin().to_string();
    agent.stop()?;
    wait_for("the agent is not found any more", || {
        let said = command()?.args(["--admin", &admin]).output()?;
        let why = String::from_utf8_lossy(&said.stderr);
        Ok((!said.status.success() && why.contains("start one (sluice-agent run)")).then_some(()))
    })
}
