//! How single fields are read from any serde source: ports, names, and Go's null for what is empty.

use std::cell::RefCell;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, Unexpected, Visitor};

use super::intern::Interner;

thread_local! {
    // Of the thread that reads: a source has one.
    static NAMES: RefCell<Interner<str>> = RefCell::new(Interner::new());
}

/// A name that many objects have: held once.
pub(super) struct Name(pub(super) Arc<str>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
                Ok(Name(NAMES.with_borrow_mut(|names| names.get(text))))
            }
        }
        de.deserialize_str(Text)
    }
}

pub(super) fn optional_interned<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Arc<str>>, D::Error> {
    Ok(Option::<Name>::deserialize(de)?.map(|it| it.0))
}

pub(super) fn interned_or_empty<'de, D: Deserializer<'de>>(de: D) -> Result<Arc<str>, D::Error> {
    Ok(optional_interned(de)?.unwrap_or_else(no_name))
}

pub(super) fn no_name() -> Arc<str> {
    NAMES.with_borrow_mut(|names| names.get(""))
}

pub(super) fn default_namespace() -> Arc<str> {
    NAMES.with_borrow_mut(|names| names.get("default"))
}

pub(super) fn namespace<'de, D: Deserializer<'de>>(de: D) -> Result<Arc<str>, D::Error> {
    Ok(optional_interned(de)?.filter(|it| !it.is_empty()).unwrap_or_else(default_namespace))
}

pub(super) fn finished<'de, D: Deserializer<'de>>(de: D) -> Result<bool, D::Error> {
    Ok(matches!(optional_interned(de)?.as_deref(), Some("Succeeded" | "Failed")))
}

/// Go writes an empty list or mapping as null.
pub(super) fn null_is_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(de: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(de)?.unwrap_or_default())
}

pub(super) fn optional_port<'de, D: Deserializer<'de>>(de: D) -> Result<Option<NonZeroU16>, D::Error> {
    Option::<Port>::deserialize(de).map(|it| it.map(|port| port.0))
}

pub(super) fn port<'de, D: Deserializer<'de>>(de: D) -> Result<NonZeroU16, D::Error> {
    Port::deserialize(de).map(|it| it.0)
}

struct Port(NonZeroU16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = NonZeroU16;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<NonZeroU16, E> {
                let port = u16::try_from(n).ok().and_then(NonZeroU16::new);
                port.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(n), &self))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<NonZeroU16, E> {
                match u64::try_from(n) {
                    Ok(n) => self.visit_u64(n),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(n), &self)),
                }
            }
        }
        de.deserialize_i64(Number).map(Port)
    }
}
