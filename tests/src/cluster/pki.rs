//! Who is who in the cluster: one authority, etcd's and the API server's certificates, and a client certificate and kubeconfig for
//! each component. In: nothing; out: files in `pki` of the cluster's folder. The keys live as long as the cluster.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::network::{CONTROL_PLANE, CONTROL_PLANE6, KUBERNETES};
use super::state;

/// Where the API server is, for whoever is on this machine.
pub(super) fn server() -> String {
    format!("https://{CONTROL_PLANE}:6443")
}

/// A file of the folder.
pub(super) fn file(name: &str) -> String {
    state::path("pki").join(name).display().to_string()
}

/// What etcd asks of who talks to it: the authority, a client certificate and its key.
pub(super) fn etcd_client() -> [String; 3] {
    ["ca.crt", "etcd-client.crt", "etcd-client.key"].map(file)
}

/// Makes the authority, the API server's certificates and the key that signs ServiceAccount tokens.
pub(super) fn make() -> Result<()> {
    state::folder("pki")?;
    // Nothing of the machine's own configuration.
    state::write("pki/openssl.cnf", "[req]\ndistinguished_name = name\n[name]\n")?;
    certificate(
        "ca",
        "/CN=sluice-cluster",
        false,
        &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"],
    )?;
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let names: Vec<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
    let mut addresses = KUBERNETES.map(str::to_owned).to_vec();
    addresses.extend([CONTROL_PLANE.to_string(), CONTROL_PLANE6.to_string()]);
    let addresses: Vec<_> = addresses.iter().map(|address| format!("IP:{address}")).collect();
    let all = format!("subjectAltName={},{}", names.join(","), addresses.join(","));
    certificate("kube-apiserver", "/CN=kube-apiserver", true, &[&all, "extendedKeyUsage=serverAuth"])?;
    // A peer and its own gateway are clients as well.
    let etcd = ["subjectAltName=IP:127.0.0.1", "extendedKeyUsage=serverAuth,clientAuth"];
    certificate("etcd", "/CN=etcd", true, &etcd)?;
    client("etcd-client", "/CN=etcd-client")?;
    client("kubelet-client", "/O=system:masters/CN=kube-apiserver")?;
    // The API server takes the public key from the certificate.
    certificate("service-accounts", "/CN=service-accounts", false, &[])
}

fn client(name: &str, subject: &str) -> Result<()> {
    certificate(name, subject, true, &["extendedKeyUsage=clientAuth"])
}

/// Makes NAME.key and NAME.crt, signed by the authority or by itself.
fn certificate(name: &str, subject: &str, signed: bool, extensions: &[&str]) -> Result<()> {
    let mut openssl = state::command("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-days", "365", "-config", &file("openssl.cnf"), "-subj", subject]);
    openssl.args(["-keyout", &file(&format!("{name}.key")), "-out", &file(&format!("{name}.crt"))]);
    if signed {
        openssl.args(["-CA", &file("ca.crt"), "-CAkey", &file("ca.key")]);
    }
    for extension in extensions {
        openssl.args(["-addext", extension]);
    }
    state::run(&mut openssl, "").map(drop)
}

/// Makes a client certificate and a kubeconfig with it; gives the latter's path.
pub(super) fn kubeconfig(name: &str, subject: &str) -> Result<PathBuf> {
    client(name, subject)?;
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "sluice",
            "cluster": { "server": server(), "certificate-authority": file("ca.crt") },
        }],
        "users": [{
            "name": name,
            "user": { "client-certificate": file(&format!("{name}.crt")), "client-key": file(&format!("{name}.key")) },
        }],
        "contexts": [{ "name": "sluice", "context": { "cluster": "sluice", "user": name } }],
        "current-context": "sluice",
    });
    state::write(format!("pki/{name}.kubeconfig"), config.to_string())
}
