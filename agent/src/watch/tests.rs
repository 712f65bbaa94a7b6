//! The sources' promises. Text and files are tested as functions, the folder with real inotify in a folder of its own.

use std::sync::Arc;

use crate::table::{Place, Problem, Update};

mod dir;
mod files;
mod parse;

/// A Service and its slice, as two documents.
fn shop(name: &str, endpoint: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: shop
spec:
  clusterIP: 10.96.0.10
  ports:
  - name: grpc
    port: 50051
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: shop
  labels:
    kubernetes.io/service-name: {name}
addressType: IPv4
endpoints:
- addresses: [{endpoint}]
ports:
- name: grpc
  port: 8080
"
    )
}

/// An object's line as `status` would have it: `+Service shop/cart`, `-Service shop/cart`.
fn told(updates: &[Update]) -> Vec<String> {
    let line = |update: &Update| match update {
        Update::Apply(object) => format!("+{}", object.key()),
        Update::Delete { key, .. } => format!("-{key}"),
        Update::Reset { kind, .. } => format!("={kind}"),
    };
    updates.iter().map(line).collect()
}

fn place(problem: &Problem) -> (Arc<str>, u64, u64) {
    match &problem.place {
        Place::File { file, line, column } => (file.clone(), *line, *column),
        elsewhere @ (Place::Object(_) | Place::Api(_)) => panic!("not of a file: {elsewhere}"),
    }
}
