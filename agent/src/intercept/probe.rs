//! Questions to the kernel before anything is loaded. In: nothing; out: whether bpf(2) answers, and which kinds of maps
//! there are. Judges nothing and leaves nothing behind.

use std::io;

use aya::maps::MapType;
use aya::sys::is_map_supported;

use super::syscall::bpf;

/// The kinds of maps that the programs use, as people call them.
const MAP_KINDS: [(&str, MapType); 6] = [
    ("hash", MapType::Hash),
    ("array", MapType::Array),
    ("per-CPU array", MapType::PerCpuArray),
    ("LRU hash", MapType::LruHash),
    ("ring buffer", MapType::RingBuf),
    ("socket storage", MapType::SkStorage),
];

/// A number that no command has.
const NO_COMMAND: libc::c_int = i32::MAX;

/// Whether bpf(2) can be called at all, whatever it then allows. `EPERM`: a filter stands before it, or the process has
/// no privilege; `ENOSYS`: the kernel is built without.
pub fn system_call() -> io::Result<()> {
    // SAFETY: a command that the kernel does not know reads no attributes.
    match unsafe { bpf(NO_COMMAND, &mut ()) } {
        // The kernel's own answer to a command it does not know.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        answer => answer,
    }
}

/// Creates a map of each kind and drops it: whether the kernel has the kind, or why that could not be seen.
pub fn map_kinds() -> impl Iterator<Item = (&'static str, io::Result<bool>)> {
    MAP_KINDS.into_iter().map(|(name, kind)| (name, is_map_supported(kind).map_err(|error| error.io_error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::OBJECT;

    #[test]
    fn the_system_call_answers_and_every_kind_is_there() {
        system_call().expect("needs root, without a seccomp filter");
        for (name, there) in map_kinds() {
            assert!(there.unwrap(), "{name}");
        }
    }

    #[test]
    fn every_kind_that_the_object_uses_is_asked_for() {
        let object = aya_object_kinds();
        for kind in &object {
            assert!(MAP_KINDS.iter().any(|(_, known)| known == kind), "{kind:?}");
        }
        assert_eq!(object.len(), MAP_KINDS.len(), "{object:?}");
    }

    /// The kinds of the object's own maps, by loading it.
    fn aya_object_kinds() -> Vec<MapType> {
        let ebpf = aya::EbpfLoader::new().btf(None).load(OBJECT).expect("needs root");
        let mut kinds: Vec<MapType> = Vec::new();
        for (_, map) in ebpf.maps() {
            let data = match map {
                aya::maps::Map::HashMap(data)
                | aya::maps::Map::LruHashMap(data)
                | aya::maps::Map::Array(data)
                | aya::maps::Map::PerCpuArray(data)
                | aya::maps::Map::SkStorage(data)
                | aya::maps::Map::RingBuf(data) => data,
                other => panic!("{other:?}"),
            };
            let kind = data.info().unwrap().map_type().unwrap();
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds
    }
}
