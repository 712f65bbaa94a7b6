//! The maps, as the contract in `lib.rs` describes them. `#[btf_map]` gives each a BTF description, so that
//! `bpftool map dump name …` prints the contract's field names.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use sluice_ebpf::{
    Config, Counters, FlowKey, FlowValue, Heartbeat, MAX_FLOWS, MAX_PODS, MAX_SERVICES, MAX_WORKERS, ONE, Original,
    PodKey, PodValue, ServiceKey, ServiceValue, UNENROLLED_BYTES, Unenrolled,
};

/// Memory for an entry when it comes: a node has far fewer Services and pods than the maps may hold.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, ServiceValue, { MAX_SERVICES as usize }, ON_DEMAND> = HashMap::new();

#[btf_map]
pub(crate) static PODS: HashMap<PodKey, PodValue, { MAX_PODS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map]
pub(crate) static HEARTBEAT: Array<Heartbeat, { MAX_WORKERS as usize }> = Array::new();

#[btf_map]
pub(crate) static ORIGINAL: SkStorage<Original> = SkStorage::new();

#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowKey, FlowValue, { MAX_FLOWS as usize }> = LruHashMap::new();

#[btf_map]
pub(crate) static UNENROLLED: RingBuf<Unenrolled, { UNENROLLED_BYTES as usize }> = RingBuf::new();

#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counters, { ONE as usize }> = PerCpuArray::new();

#[btf_map]
pub(crate) static CONFIG: Array<Config, { ONE as usize }> = Array::new();
