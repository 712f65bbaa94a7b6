//! Kubernetes objects as a folder of YAML: in, objects as JSON values; out, files that a reader never sees half
//! written. Knows no API server: no status but what sluice reads, no resource versions.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// A folder of objects, as `sluice-agent run --source DIR` watches it.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `NAME.yaml` with all the objects, in place of what it held, in one step.
    pub(crate) fn write(&self, name: &str, objects: &[Value]) -> Result<()> {
        let documents: Vec<_> = objects.iter().map(to_yaml).collect();
        let (draft, file) = (self.path.join(format!(".{name}.draft")), self.path.join(format!("{name}.yaml")));
        fs::write(&draft, documents.join("---\n"))
            .and_then(|()| fs::rename(&draft, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Removes `NAME.yaml`; fine if it is not there.
    pub(crate) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.path.join(format!("{name}.yaml")));
    }
}

/// The value as a YAML document in block style.
pub(crate) fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// Writes `value` as lines indented by `indent`, each with its line end.
fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                *out += &format!("{pad}{}:", string(key));
                match value {
                    Value::Object(map) if !map.is_empty() => {
                        out.push('\n');
                        block(value, indent + 2, out);
                    }
                    Value::Array(items) if !items.is_empty() => {
                        out.push('\n');
                        block(value, indent, out);
                    }
                    flat => *out += &format!(" {}\n", scalar(flat)),
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut lines = String::new();
                block(item, indent + 2, &mut lines);
                // The first line's indentation makes room for the dash.
                *out += &format!("{pad}- {}", &lines[indent + 2..]);
            }
        }
        flat => *out += &format!("{pad}{}\n", scalar(flat)),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        other => other.to_string(),
    }
}

/// Plain where no reader of any YAML version could take it for something else, quoted as in JSON otherwise.
fn string(text: &str) -> String {
    let letters = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c));
    let word = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    if letters && !word.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_reads_as_people_write_it() {
        let value = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "echo", "labels": {}, "annotations": { "sluice.dev/redirect": "false" } },
            "spec": { "clusterIPs": ["10.96.0.10", "fd00:10:96::a"], "ports": [{ "name": "grpc", "port": 50051 }] },
        });
        assert_eq!(
            to_yaml(&value),
            "apiVersion: v1\nkind: Service\nmetadata:\n  annotations:\n    sluice.dev/redirect: \"false\"\n  labels: {}\n  \
             name: echo\nspec:\n  clusterIPs:\n  - \"10.96.0.10\"\n  - \"fd00:10:96::a\"\n  ports:\n  - name: grpc\n    \
             port: 50051\n"
        );
    }

    #[test]
    fn what_is_written_parses_to_the_same() {
        let value = json!({
            "a": ["true", "no", "1", "1e3", "null", "", " x ", "a: b", "- c", "\"q\"", "line\nline", "é", "#"],
            "b": [[1, 2], [], {}, [{ "c": null, "d": [true, 1.5, -3] }]],
            "key with spaces: and colon": { "e": { "f": [] } },
        });
        let read: Value = serde_saphyr::from_str(&to_yaml(&value)).unwrap();
        assert_eq!(read, value);
    }
}
