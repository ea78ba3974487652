//! Pinned maps of the right types in a directory of their own on the BPF file
//! system, and a program that puts events into the ring.
#![expect(
    unsafe_code,
    reason = "raw bpf(2): aya makes no maps or programs without an object"
)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use datapath_common::maps::layout;
use datapath_common::{COUNTERS, Config, Event, maps};
use nix::sched::{CloneFlags, unshare};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// `enum bpf_map_type` of `linux/bpf.h`.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
const RINGBUF: u32 = 27;
/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

/// A directory of pins, removed with all that is in it.
pub struct Pins {
    pub dir: PathBuf,
}

impl Pins {
    /// Every map, of the kind that the programs have, empty.
    pub fn new() -> Self {
        let pins = Self::empty();
        pins.fill();
        pins
    }

    /// Makes every map.
    pub fn fill(&self) {
        for map in maps::ALL {
            let (_, entries, _) = kind(map.name);
            self.make(map.name, entries);
        }
    }

    /// Removes every map.
    pub fn clear(&self) {
        for map in maps::ALL {
            fs::remove_file(self.dir.join(map.name)).unwrap();
        }
    }

    /// A map of another size in place of `name`.
    pub fn resize(&self, name: &str, entries: u32) {
        fs::remove_file(self.dir.join(name)).unwrap();
        self.make(name, entries);
    }

    fn make(&self, name: &str, entries: u32) {
        let (key, value) = layout(name).unwrap();
        let (kind, _, flags) = kind(name);
        self.create(name, kind, (key as u32, value as u32), entries, flags);
    }

    /// No map.
    pub fn empty() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tulle-cli-test-{}-{number}", std::process::id());
        let dir = Path::new("/sys/fs/bpf").join(name);
        fs::create_dir(&dir).expect("these tests need root and a BPF file system on /sys/fs/bpf");
        Self { dir }
    }

    /// Makes and pins a map; `sizes` of key and value in bytes.
    pub fn create(&self, name: &str, kind: u32, sizes: (u32, u32), entries: u32, flags: u32) {
        let mut attr = MapAttr {
            map_type: kind,
            key_size: sizes.0,
            value_size: sizes.1,
            max_entries: entries,
            map_flags: flags,
            inner_map_fd: 0,
            numa_node: 0,
            name: [0; 16],
        };
        attr.name[..name.len()].copy_from_slice(name.as_bytes());
        // BPF_MAP_CREATE
        let fd = bpf_fd(0, &mut attr).unwrap();
        MapData::from_fd(fd)
            .unwrap()
            .pin(self.dir.join(name))
            .unwrap();
    }

    /// A map of another layout in place of `name`.
    pub fn replace(&self, name: &str, sizes: (u32, u32)) {
        fs::remove_file(self.dir.join(name)).unwrap();
        self.create(name, HASH, sizes, 16, 0);
    }

    fn typed<T: TryFrom<Map, Error = MapError>>(&self, name: &str) -> T {
        Map::from_map_data(self.data(name))
            .and_then(T::try_from)
            .unwrap()
    }

    /// Writes a row of a per-CPU array, the same on every CPU; returns how many there are.
    pub fn set_per_cpu<V: aya::Pod>(&self, name: &str, row: u32, value: V) -> u64 {
        let cpus = aya::util::nr_cpus().unwrap();
        let values = PerCpuValues::try_from(vec![value; cpus]).unwrap();
        self.per_cpu::<V>(name).set(row, values, 0).unwrap();
        cpus as u64
    }

    fn data(&self, name: &str) -> MapData {
        MapData::from_pin(self.dir.join(name)).unwrap()
    }

    pub fn hash<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        self.typed(name)
    }

    pub fn array<V: aya::Pod>(&self, name: &str) -> Array<MapData, V> {
        self.typed(name)
    }

    pub fn trie<A: aya::Pod, V: aya::Pod>(&self, name: &str) -> LpmTrie<MapData, A, V> {
        self.typed(name)
    }

    pub fn per_cpu<V: aya::Pod>(&self, name: &str) -> PerCpuArray<MapData, V> {
        self.typed(name)
    }

    /// Attaches a program to the loopback device of a network namespace of its
    /// own, which lives as long as what is returned, and pins the link.
    pub fn attach(&self, name: &str) -> File {
        let event: Event = bytemuck::Zeroable::zeroed();
        let ring = self.data(maps::EVENTS);
        let program = load(&emitter(&event, ring.fd().as_fd().as_raw_fd()));
        let attach = move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut attr = LinkAttr {
                program: program.as_raw_fd().cast_unsigned(),
                ifindex: 1,
                attach_type: 46, // BPF_TCX_INGRESS
                flags: 0,
                relative: 0,
                padding: 0,
                revision: 0,
            };
            // BPF_LINK_CREATE
            let link = bpf_fd(28, &mut attr).unwrap();
            (link, File::open("/proc/thread-self/ns/net").unwrap())
        };
        let (link, namespace) = thread::spawn(attach).join().unwrap();
        let dir = self.dir.join("links");
        fs::create_dir_all(&dir).unwrap();
        let path = CString::new(dir.join(name).as_os_str().as_bytes()).unwrap();
        let fd = link.as_raw_fd().cast_unsigned();
        let mut attr = PinAttr {
            path: path.as_ptr() as u64,
            fd,
            flags: 0,
        };
        // BPF_OBJ_PIN
        bpf(6, &mut attr).unwrap();
        namespace
    }

    /// Loads a program of the datapath that uses these maps, with this
    /// configuration; it is gone with what is returned.
    pub fn load(&self, config: &Config) -> Ebpf {
        let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/tulle.bpf.o");
        let path = std::env::var("TULLE_BPF_OBJECT").unwrap_or_else(|_| built.to_owned());
        let object = fs::read(&path)
            .unwrap_or_else(|e| panic!("{path}: {e}; build it with `cargo xtask build-ebpf`"));
        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", config, true);
        for map in maps::ALL {
            loader.map_pin_path(map.name, self.dir.join(map.name));
        }
        let mut ebpf = loader.load(&object).unwrap();
        let program: &mut SchedClassifier = ebpf
            .program_mut("tulle_pod_to4")
            .unwrap()
            .try_into()
            .unwrap();
        program.load().unwrap();
        ebpf
    }

    /// Puts an event into the ring, as the programs do.
    pub fn emit(&self, event: &Event) {
        let ring = self.data(maps::EVENTS);
        let program = load(&emitter(event, ring.fd().as_fd().as_raw_fd()));
        let packet = [0u8; 64];
        // SAFETY: all zero is a valid attribute of a test run.
        let mut attr: TestRunAttr = unsafe { zeroed() };
        attr.program = program.as_raw_fd().cast_unsigned();
        attr.data_size_in = packet.len() as u32;
        attr.data_in = packet.as_ptr() as u64;
        // BPF_PROG_TEST_RUN
        bpf(10, &mut attr).unwrap();
        assert_eq!(attr.retval, 0, "the ring took no event");
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Kind, entries and flags of a map; tables are smaller than the defaults.
fn kind(name: &str) -> (u32, u32, u32) {
    match name {
        maps::SEGMENTS => (ARRAY, 8192, MMAPABLE),
        maps::BACK_V4 | maps::BACK_V6 => (ARRAY, 4096, 0),
        maps::FLOW_V4 | maps::FLOW_V6 => (LRU_HASH, 32_768, 0),
        maps::FRAG_V4 | maps::FRAG_V6 | maps::AFFIN_V4 | maps::AFFIN_V6 => (LRU_HASH, 1024, 0),
        maps::PEERS_V4
        | maps::PEERS_V6
        | maps::SRCS_V4
        | maps::SRCS_V6
        | maps::DIRECT_V4
        | maps::DIRECT_V6 => (LPM_TRIE, 1024, NO_PREALLOC),
        maps::COUNTERS => (PERCPU_ARRAY, COUNTERS, 0),
        maps::SVC_STATS | maps::BK_STATS4 | maps::BK_STATS6 => (PERCPU_ARRAY, 64, 0),
        maps::LIMITS => (PERCPU_ARRAY, 3, 0),
        maps::HOPS => (PERCPU_ARRAY, maps::NEXT_HOP_ROWS, 0),
        maps::LOCKS => (ARRAY, maps::LOCK_WORDS, 0),
        maps::WORK_V4 | maps::WORK_V6 => (PERCPU_ARRAY, 1, 0),
        maps::EVENTS => (RINGBUF, 65_536, 0),
        maps::MONITOR => (ARRAY, 1, 0),
        _ => (HASH, 16_384, NO_PREALLOC),
    }
}

#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct LinkAttr {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct ProgramAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct TestRunAttr {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: src << 4 | dst,
        offset,
        immediate,
    }
}

/// Writes the event to the stack, word by word, and gives it to the ring.
fn emitter(event: &Event, ring: i32) -> Vec<Instruction> {
    let size = i16::try_from(size_of::<Event>()).unwrap();
    let words = bytemuck::bytes_of(event).chunks_exact(4);
    let mut code: Vec<Instruction> = words
        .zip((-size..).step_by(4))
        // *(u32 *)(r10 + offset) = word
        .map(|(word, offset)| {
            op(
                0x62,
                10,
                0,
                offset,
                i32::from_ne_bytes(word.try_into().unwrap()),
            )
        })
        .collect();
    code.extend([
        op(0x18, 1, 1, 0, ring), // r1 = map, by descriptor
        op(0x00, 0, 0, 0, 0),
        op(0xbf, 2, 10, 0, 0), // r2 = r10 - size
        op(0x07, 2, 0, 0, -i32::from(size)),
        op(0xb7, 3, 0, 0, i32::from(size)),
        op(0xb7, 4, 0, 0, 0),
        op(0x85, 0, 0, 0, 130), // bpf_ringbuf_output
        op(0x95, 0, 0, 0, 0),
    ]);
    code
}

fn load(code: &[Instruction]) -> OwnedFd {
    let mut log = vec![0u8; 64 << 10];
    let mut attr = ProgramAttr {
        kind: 3, // BPF_PROG_TYPE_SCHED_CLS
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
        name: *b"tulle_test\0\0\0\0\0\0",
    };
    // BPF_PROG_LOAD
    bpf_fd(5, &mut attr).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&log)))
}

fn bpf_fd<T>(command: i64, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn bpf<T>(command: i64, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is valid for its size, its pointers for what the commands
    // of this file read and write.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
