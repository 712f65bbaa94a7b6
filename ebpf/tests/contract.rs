//! The committed object against the contract: each map's type, sizes, capacity and flags, and the programs' names and kinds.
//! Needs no privilege. Whether the object is what the source builds is asked by `cargo xtask ebpf --check`.

use std::collections::BTreeSet;

use aya_obj::generated::bpf_map_type::{self, *};
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type as MapType};
use aya_obj::{Map, Object, ProgramSection};
use sluice_ebpf::*;

static OBJECT: &[u8] = include_bytes!("../sluice.bpf.o");

fn object() -> Object {
    Object::parse(OBJECT).unwrap()
}

/// What the contract says of a map.
struct Expected {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    max_entries: u32,
    flags: u32,
}

const fn map(name: &'static str, kind: bpf_map_type, key: usize, value: usize, max_entries: u32) -> Expected {
    Expected { name, kind, key, value, max_entries, flags: 0 }
}

fn contract() -> [Expected; 8] {
    let on_demand = |map| Expected { flags: BPF_F_NO_PREALLOC, ..map };
    let index = size_of::<u32>();
    [
        on_demand(map(
            names::SERVICES,
            BPF_MAP_TYPE_HASH,
            size_of::<ServiceKey>(),
            size_of::<ServiceValue>(),
            MAX_SERVICES,
        )),
        on_demand(map(names::PODS, BPF_MAP_TYPE_HASH, size_of::<PodKey>(), size_of::<PodValue>(), MAX_PODS)),
        map(names::HEARTBEAT, BPF_MAP_TYPE_ARRAY, index, size_of::<Heartbeat>(), MAX_WORKERS),
        on_demand(map(names::ORIGINAL, BPF_MAP_TYPE_SK_STORAGE, index, size_of::<Original>(), 0)),
        map(names::FLOWS, BPF_MAP_TYPE_LRU_HASH, size_of::<FlowKey>(), size_of::<FlowValue>(), MAX_FLOWS),
        map(names::UNENROLLED, BPF_MAP_TYPE_RINGBUF, 0, 0, UNENROLLED_BYTES),
        map(names::COUNTERS, BPF_MAP_TYPE_PERCPU_ARRAY, index, size_of::<Counters>(), ONE),
        map(names::CONFIG, BPF_MAP_TYPE_ARRAY, index, size_of::<Config>(), ONE),
    ]
}

#[test]
fn each_map_of_the_object_is_as_the_contract_says() {
    let object = object();
    for expected in contract() {
        let name = expected.name;
        let map = object.maps.get(name).unwrap_or_else(|| panic!("map {name} is not in the object"));
        assert!(matches!(map, Map::Btf(_)), "{name} carries BTF");
        assert_eq!(map.map_type(), expected.kind as u32, "type of {name}");
        assert_eq!(map.key_size() as usize, expected.key, "key size of {name}");
        assert_eq!(map.value_size() as usize, expected.value, "value size of {name}");
        assert_eq!(map.max_entries(), expected.max_entries, "entries of {name}");
        assert_eq!(map.map_flags(), expected.flags, "flags of {name}");
    }
}

#[test]
fn the_object_has_no_map_beside_the_contracts_but_those_of_the_log() {
    let contract: BTreeSet<_> = contract().iter().map(|map| map.name).collect();
    let object = object();
    let others: Vec<_> = object.maps.keys().filter(|name| !contract.contains(name.as_str())).collect();
    assert!(others.iter().all(|name| *name == "AYA_LOGS" || name.starts_with(".rodata")), "{others:?}");
}

#[test]
fn the_programs_are_the_contracts_and_their_names_fit_the_kernel() {
    /// `BPF_OBJ_NAME_LEN` of linux/bpf.h, less the closing zero.
    const NAME_LEN: usize = 15;
    let object = object();
    let sock_addr = [names::CONNECT4, names::CONNECT6, names::GETPEERNAME4, names::GETPEERNAME6];
    for name in sock_addr {
        let program = &object.programs[name];
        assert!(matches!(program.section, ProgramSection::CgroupSockAddr { .. }), "{name}: {:?}", program.section);
    }
    assert!(matches!(object.programs[names::SOCK_OPS].section, ProgramSection::SockOps));
    assert_eq!(object.programs.len(), sock_addr.len() + 1);
    for name in object.programs.keys() {
        assert!(name.len() <= NAME_LEN, "{name}");
    }
}

#[test]
fn the_object_names_no_path_of_the_machine_that_built_it() {
    for (what, path) in [("a home directory", "/home/"), ("root's home", "/root/"), ("cargo's registry", ".cargo")] {
        let found = OBJECT.windows(path.len()).any(|window| window == path.as_bytes());
        assert!(!found, "{what} ({path}) is in the object: rebuild it with cargo xtask ebpf");
    }
}
