//! A file's text in, its objects out, or the first problem with line, column, field and cure. YAML with any number of
//! documents, JSON (which is YAML), lists. Objects of other kinds are passed over: ordinary manifests hold many.

use std::sync::Arc;
use std::{fmt, io, thread};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::Track;
use serde_saphyr::Options;

use crate::table::object::{EndpointSlice, Kind, Namespace, Node, Object, Pod, Service};
use crate::table::{Place, Problem, misplaced};

/// How deeply a file may be nested. Schemas in CustomResourceDefinitions reach some dozens.
const MAX_DEPTH: usize = 200;
/// Bytes for the parser's recursion: a level takes about 25 KiB in a build without optimisation. Only what is used of it
/// takes memory.
const STACK: usize = 16 << 20;

/// An object and the line where its document begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub object: Object,
    pub line: u64,
}

/// All objects of a file that the table is built from. One problem holds back the whole file: half of it may be worse
/// than what was there before.
pub fn parse(file: &Arc<str>, text: &str) -> Result<Vec<Parsed>, Problem> {
    let parse = || {
        let mut objects = Vec::new();
        for document in documents(text) {
            let found = document.objects().map_err(|fault| fault.into_problem(file, document.first_line))?;
            objects.extend(found.into_iter().map(|object| Parsed { object, line: document.first_line }));
        }
        Ok(objects)
    };
    // The parser recurses, and the depth of a file must not decide whether the agent lives.
    let parsed = thread::scope(|scope| {
        let parser = thread::Builder::new().name("parse".to_owned()).stack_size(STACK).spawn_scoped(scope, parse)?;
        Ok(parser.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    parsed.unwrap_or_else(|error: io::Error| {
        let fault = Fault::whole(format!("no thread to parse it: {error}"), "raise the limit of threads");
        Err(fault.into_problem(file, 1))
    })
}

/// One document of a file.
struct Document<'a> {
    text: &'a str,
    /// Of the document's marker, or of its first content.
    first_line: u64,
}

/// A `---` at the beginning of a line begins a document, whatever stands around it (YAML 1.2.2 §9.1.2).
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut starts = vec![(0, 1)];
    let mut offset = 0;
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            starts.push((offset, number));
        }
        offset += line.len();
    }
    let ends = starts.iter().skip(1).map(|(offset, _)| *offset).chain([text.len()]);
    let document = |((start, first_line), end): ((usize, u64), usize)| Document { text: &text[start..end], first_line };
    starts.iter().copied().zip(ends).map(document).filter(|it| !it.is_blank()).collect()
}

impl Document<'_> {
    /// Nothing but markers, comments and directives.
    fn is_blank(&self) -> bool {
        let blank = |line: &str| {
            let content = line.strip_prefix("---").or(line.strip_prefix("...")).unwrap_or(line).trim();
            content.is_empty() || content.starts_with('#') || line.starts_with("%")
        };
        self.text.trim_start_matches('\u{feff}').lines().all(blank)
    }

    fn objects(&self) -> Result<Vec<Object>, Fault> {
        match self.read(HeadSeed)?.content(None)? {
            Content::Foreign => Ok(Vec::new()),
            Content::One(kind) => {
                let object = self.read(OneSeed(kind))?;
                self.check(&object, &[])?;
                Ok(vec![object])
            }
            Content::List(of) => {
                let mut kinds = Vec::new();
                for (index, head) in self.read(HeadsSeed)?.into_iter().enumerate() {
                    let place = |fault: Fault| Fault { field: format!("items[{index}]"), ..fault };
                    kinds.push(match head.content(of).map_err(place)? {
                        Content::One(kind) => Some(kind),
                        Content::Foreign | Content::List(_) => None,
                    });
                }
                let items = self.read(ItemsSeed(&kinds))?;
                for (index, object) in &items {
                    self.check(object, &[Step::Field("items"), Step::Index(*index)])?;
                }
                Ok(items.into_iter().map(|(_, object)| object).collect())
            }
        }
    }

    /// What one field says of another can be checked only when all is read; the place is then looked up again.
    fn check(&self, object: &Object, path: &[Step]) -> Result<(), Fault> {
        let slice = match object {
            Object::EndpointSlice(slice) => slice,
            Object::Service(service) if service.spec.has_no_ports() => {
                return self
                    .read(Probe { path: &[path, &[Step::Field("spec")]].concat(), message: "missing field `ports`" });
            }
            _ => return Ok(()),
        };
        let Some((endpoint, address)) = misplaced(slice) else { return Ok(()) };
        let wrong = &slice.endpoints[endpoint].addresses[address];
        let message = format!("{wrong} is no {} address, as addressType promises", slice.address_type.name());
        let steps = [Step::Field("endpoints"), Step::Index(endpoint), Step::Field("addresses"), Step::Index(address)];
        let path = [path, &steps].concat();
        self.read(Probe { path: &path, message: &message })
    }

    fn read<S: for<'de> DeserializeSeed<'de, Value = T>, T>(&self, seed: S) -> Result<T, Fault> {
        let mut track = Track::new();
        let read = serde_saphyr::with_deserializer_from_str_with_options(self.text, options(), |de| {
            seed.deserialize(serde_path_to_error::Deserializer::new(de, &mut track))
        });
        read.map_err(|error| {
            let field = track.path().to_string();
            let location = error.location();
            Fault {
                line: location.map_or(1, |it| it.line()),
                column: location.map_or(0, |it| it.column()),
                field: if field == "." { String::new() } else { field },
                message: error.to_string(),
                cure: None,
            }
        })
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        // The API server takes no number and no boolean for a string; a manifest that works here should work there.
        no_schema: true,
        // YAML 1.2: `n`, `y`, `no` and `on` are names.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
        },
    }
}

/// What went wrong in a document, with the place counted from the document's first line.
struct Fault {
    line: u64,
    column: u64,
    field: String,
    message: String,
    cure: Option<String>,
}

impl Fault {
    /// Of a whole document.
    fn whole(message: impl Into<String>, cure: impl Into<String>) -> Self {
        Fault { line: 1, column: 0, field: String::new(), message: message.into(), cure: Some(cure.into()) }
    }

    fn into_problem(self, file: &Arc<str>, first_line: u64) -> Problem {
        let place = format!(" at line {}, column {}", self.line, self.column);
        let message = self.message.strip_suffix(&place).unwrap_or(&self.message);
        // What comes then is for who programs with the parser.
        let message = [", set DuplicateKeyPolicy", "; use Option<"]
            .iter()
            .fold(message, |message, advice| message.split_once(advice).map_or(message, |(what, _)| what));
        let message = message.to_owned();
        // Within a syntax error the path is only a guess.
        let field = if self.field.contains('?') { String::new() } else { self.field };
        let cure = self.cure.unwrap_or_else(|| cure(&field, &message).to_owned());
        let place = Place::File { file: file.clone(), line: first_line + self.line - 1, column: self.column };
        Problem { place, field, message, cure }
    }
}

/// What to write instead, by the field that is wrong.
fn cure(field: &str, message: &str) -> &'static str {
    let last = field.rsplit('.').next().unwrap_or_default();
    let name = last.split('[').next().unwrap_or_default();
    match name {
        _ if message.starts_with("missing field") => "add the field",
        _ if message.ends_with("must be quoted") => "put the value in quotes",
        _ if message.starts_with("duplicate") => "remove one of the two",
        "port" => "write a number from 1 to 65535",
        "protocol" => "write TCP, UDP or SCTP, in capitals",
        "addresses" => "write an IPv4 or IPv6 address of the endpoint, of the slice's addressType",
        "addressType" => "write IPv4 or IPv6",
        "clusterIP" | "clusterIPs" => "write an IP address, or None for a headless Service",
        "type" => "write ClusterIP, NodePort, LoadBalancer or ExternalName",
        "sessionAffinity" => "write None or ClientIP",
        "internalTrafficPolicy" => "write Cluster or Local",
        "ready" | "serving" | "terminating" | "hostNetwork" => "write true or false, or leave it out",
        "" => "correct the YAML; `kubectl apply --dry-run=client -f FILE` tells more",
        _ => "write it as the Kubernetes API reference has it; `kubectl explain` tells more",
    }
}

/// What else there is in the API groups of the kinds that we read (Kubernetes 1.33 API reference, core/v1).
const OTHER_KINDS: [&str; 14] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "Status",
];

/// What tells kinds apart.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
}

/// What a document or a list's item is.
enum Content {
    /// None of our business.
    Foreign,
    One(Kind),
    /// Items of any kind, or of this one.
    List(Option<Kind>),
}

impl Head {
    /// `of`: the kind of items that name none, as in a ServiceList.
    fn content(self, of: Option<Kind>) -> Result<Content, Fault> {
        let Head { api_version, kind } = self;
        let api_version = api_version.as_deref();
        let Some(kind) = kind else {
            return match (of, api_version) {
                (Some(kind), _) => Ok(Content::One(kind)),
                (None, Some("v1" | "discovery.k8s.io/v1")) => {
                    Err(Fault::whole("an apiVersion of Kubernetes without a kind", "add kind, or finish the file"))
                }
                (None, _) => Ok(Content::Foreign),
            };
        };
        if kind == "List" && matches!(api_version, None | Some("v1")) {
            return Ok(Content::List(None));
        }
        let element = kind.strip_suffix("List").unwrap_or(&kind);
        let Some(known) = Kind::ALL.into_iter().find(|it| it.name() == element) else {
            return match api_version {
                Some(group @ ("v1" | "discovery.k8s.io/v1")) if !OTHER_KINDS.contains(&element) => Err(Fault {
                    field: "kind".to_owned(),
                    ..Fault::whole(
                        format!("{group} has no kind {kind}"),
                        "write it as `kubectl api-resources` lists it, such as Service or EndpointSlice",
                    )
                }),
                _ => Ok(Content::Foreign),
            };
        };
        match api_version {
            Some(it) if it == known.api_version() => {}
            None if of == Some(known) => {}
            // Other API groups have kinds of the same names (Knative's Service), but there is one EndpointSlice.
            Some(_) if known != Kind::EndpointSlice => return Ok(Content::Foreign),
            None | Some(_) => {
                let fault = Fault::whole(
                    format!("{kind} needs apiVersion {}", known.api_version()),
                    format!("write apiVersion: {}", known.api_version()),
                );
                return Err(Fault { field: "apiVersion".to_owned(), ..fault });
            }
        }
        Ok(if element == kind { Content::One(known) } else { Content::List(Some(known)) })
    }
}

struct HeadSeed;

impl<'de> DeserializeSeed<'de> for HeadSeed {
    type Value = Head;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Head, D::Error> {
        Head::deserialize(de)
    }
}

struct OneSeed(Kind);

impl<'de> DeserializeSeed<'de> for OneSeed {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Object, D::Error> {
        Ok(match self.0 {
            Kind::Service => Object::Service(Arc::new(Service::deserialize(de)?)),
            Kind::EndpointSlice => Object::EndpointSlice(Arc::new(EndpointSlice::deserialize(de)?)),
            Kind::Pod => Object::Pod(Arc::new(Pod::deserialize(de)?)),
            Kind::Namespace => Object::Namespace(Arc::new(Namespace::deserialize(de)?)),
            Kind::Node => Object::Node(Arc::new(Node::deserialize(de)?)),
        })
    }
}

struct HeadsSeed;

impl<'de> DeserializeSeed<'de> for HeadsSeed {
    type Value = Vec<Head>;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Vec<Head>, D::Error> {
        #[derive(Deserialize)]
        struct Heads {
            #[serde(default)]
            items: Option<Vec<Head>>,
        }
        Ok(Heads::deserialize(de)?.items.unwrap_or_default())
    }
}

/// The items of a list with their indices, each read as its kind demands; None is passed over.
struct ItemsSeed<'a>(&'a [Option<Kind>]);

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Vec<(usize, Object)>;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            return IgnoredAny::deserialize(de).map(|_| Vec::new());
        }
        de.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = Vec<(usize, Object)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                items = map.next_value_seed(ElementsSeed(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(items)
    }
}

struct ElementsSeed<'a>(&'a [Option<Kind>]);

impl<'de> DeserializeSeed<'de> for ElementsSeed<'_> {
    type Value = Vec<(usize, Object)>;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ElementsSeed<'_> {
    type Value = Vec<(usize, Object)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubernetes objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        for (index, kind) in self.0.iter().enumerate() {
            match kind {
                Some(kind) => items.extend(seq.next_element_seed(OneSeed(*kind))?.map(|it| (index, it))),
                None => {
                    seq.next_element::<IgnoredAny>()?;
                }
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(items)
    }
}

/// One step of a field's path.
#[derive(Clone, Copy)]
enum Step {
    Field(&'static str),
    Index(usize),
}

/// Fails with `message` at the end of `path`, so that the error has that place.
struct Probe<'a> {
    path: &'a [Step],
    message: &'a str,
}

impl<'de> DeserializeSeed<'de> for Probe<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Probe<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what was read before")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.path.is_empty() {
            return Err(serde::de::Error::custom(self.message));
        }
        while let Some(key) = map.next_key::<String>()? {
            match self.path {
                [Step::Field(field), rest @ ..] if *field == key => {
                    map.next_value_seed(Probe { path: rest, message: self.message })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if let [Step::Index(index), rest @ ..] = self.path {
            for _ in 0..*index {
                seq.next_element::<IgnoredAny>()?;
            }
            seq.next_element_seed(Probe { path: rest, message: self.message })?;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Err(E::custom(self.message))
    }
}
