//! Objects as the API server sends them: what the watch needs of any object, and the part that the table keeps, read one
//! by one so that an object that cannot be read costs only itself. Knows the kinds' places in the API.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::ClusterResourceScope;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, de};

use crate::table::object::{EndpointSlice, Key, Kind, Namespace, Node, Object, Pod, Service};

/// A kind that is watched.
pub(super) trait Watched: DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static {
    const KIND: Kind;
    /// Whether the API server may leave out everything but the metadata.
    const METADATA_ONLY: bool = false;

    fn into_object(self) -> Object;
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;

    fn into_object(self) -> Object {
        Object::Service(Arc::new(self))
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn into_object(self) -> Object {
        Object::EndpointSlice(Arc::new(self))
    }
}

impl Watched for Pod {
    const KIND: Kind = Kind::Pod;

    fn into_object(self) -> Object {
        Object::Pod(Arc::new(self))
    }
}

impl Watched for Namespace {
    const KIND: Kind = Kind::Namespace;
    const METADATA_ONLY: bool = true;

    fn into_object(self) -> Object {
        Object::Namespace(Arc::new(self))
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;
    const METADATA_ONLY: bool = true;

    fn into_object(self) -> Object {
        Object::Node(Arc::new(self))
    }
}

/// One object of a list or of a watch.
#[derive(Clone, Debug)]
pub(super) struct Wire<T> {
    /// Name, namespace, UID and resource version; nothing else.
    meta: ObjectMeta,
    /// The object, or the field that is wrong and why.
    object: Result<T, (String, String)>,
}

impl<T: Watched> Wire<T> {
    pub(super) fn key(&self) -> Key {
        let text = |it: &Option<String>| it.as_deref().unwrap_or_default().into();
        Key { kind: T::KIND, namespace: text(&self.meta.namespace), name: text(&self.meta.name) }
    }

    pub(super) fn uid(&self) -> Option<Arc<str>> {
        self.meta.uid.as_deref().map(Into::into)
    }

    /// The object, or the path of the field that is wrong and what is wrong with it.
    pub(super) fn into_object(self) -> Result<Object, (String, String)> {
        self.object.map(T::into_object)
    }
}

impl<'de, T: Watched> Deserialize<'de> for Wire<T> {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Meta {
            name: Option<String>,
            namespace: Option<String>,
            uid: Option<String>,
            resource_version: Option<String>,
        }
        let mut value = serde_json::Value::deserialize(de)?;
        let metadata = value.get_mut("metadata").ok_or_else(|| D::Error::missing_field("metadata"))?;
        // Often more than half of an object, and of no use here.
        if let Some(fields) = metadata.as_object_mut() {
            fields.remove("managedFields");
        }
        let Meta { name, namespace, uid, resource_version } =
            Meta::deserialize(&*metadata).map_err(de::Error::custom)?;
        let meta = ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() };
        let object =
            serde_path_to_error::deserialize(value).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
                (error.path().to_string(), error.into_inner().to_string())
            });
        Ok(Self { meta, object })
    }
}

impl<T: Watched> Resource for Wire<T> {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::KIND.name().into()
    }

    fn group((): &()) -> Cow<'_, str> {
        T::KIND.api_version().rsplit_once('/').map_or("", |(group, _)| group).into()
    }

    fn version((): &()) -> Cow<'_, str> {
        T::KIND.api_version().rsplit('/').next().unwrap_or_default().into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::KIND.plural().into()
    }

    fn metadata_api() -> bool {
        T::METADATA_ONLY
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_cannot_be_read_still_says_which_it_is_and_what_is_wrong() {
        let text = r#"{"metadata":{"name":"cart","namespace":"shop","uid":"u","resourceVersion":"7","managedFields":[{}]},
                       "spec":{"ports":[{"port":80},{"port":70000}]}}"#;
        let wire: Wire<Service> = serde_json::from_str(text).unwrap();
        assert_eq!((wire.key().to_string(), wire.uid().as_deref()), ("Service shop/cart".to_owned(), Some("u")));
        assert_eq!(wire.meta().resource_version.as_deref(), Some("7"));
        let (field, message) = wire.into_object().unwrap_err();
        assert_eq!(field, "spec.ports[1].port");
        assert!(message.contains("a port from 1 to 65535"), "{message}");
    }

    #[test]
    fn each_kind_is_asked_for_at_its_place_in_the_api() {
        assert_eq!(Wire::<Service>::url_path(&(), None), "/api/v1/services");
        assert_eq!(Wire::<EndpointSlice>::url_path(&(), None), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(Wire::<Pod>::url_path(&(), None), "/api/v1/pods");
        assert_eq!(Wire::<Namespace>::url_path(&(), None), "/api/v1/namespaces");
        assert_eq!(Wire::<Node>::url_path(&(), None), "/api/v1/nodes");
    }
}
