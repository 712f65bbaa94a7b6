mod ebpf;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == "ebpf" => ebpf::run(rest),
        _ => anyhow::bail!("usage: cargo xtask ebpf"),
    }
}
