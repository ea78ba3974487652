//! The `bpf(2)` calls that aya does not offer: batches, raw rows, links with
//! their interface, queries. Every buffer's length is checked here, so that
//! nothing above needs `unsafe`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type, bpf_map_info};
use nix::sys::signal::{SigSet, SigmaskHow};

/// `BPF_NOEXIST`: write only if the key is new.
pub(crate) const NO_EXIST: u64 = 1;
/// `BPF_ANY`: write whether or not the key is there.
pub(crate) const ANY: u64 = 0;
/// `errno` of the kernel's own "not supported", which libc does not name.
pub(crate) const ENOTSUPP: i32 = 524;

/// What a pinned or open BPF object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Map,
    Program,
    Link,
    Other,
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers; all zero is valid and
    // is what the kernel asks of unused fields.
    unsafe { std::mem::zeroed() }
}

fn call(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attribute block is live and its size is passed; callers in
    // this file fill in pointers only to buffers that live across the call
    // and are as long as the command reads or writes.
    let got = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            cmd as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(got)
}

/// How often a call is made that signals may interrupt.
pub(crate) const LOAD_ATTEMPTS: u32 = 5;

/// Whether a call failed for no other reason than a signal to the thread. The
/// verifier says `EAGAIN` then, a test run `EINTR`.
pub(crate) fn is_interruption(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
}

/// Signals do not reach this thread until it is dropped. Others of the process
/// take them meanwhile, or they wait.
pub(crate) struct HeldSignals(Option<SigSet>);

impl HeldSignals {
    /// Holds them from now on; without effect if that is refused.
    pub(crate) fn new() -> Self {
        Self(SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // The set was this thread's a moment ago, so it is taken again.
        let _ = self.0.map(|mask| mask.thread_set_mask());
    }
}

/// [`call`], made again when a signal interrupted it.
fn call_again(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    let _held = HeldSignals::new();
    for _ in 1..LOAD_ATTEMPTS {
        match call(cmd, attr) {
            Err(e) if is_interruption(&e) => {}
            other => return other,
        }
    }
    call(cmd, attr)
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(number: i64) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened this descriptor for us; nobody else
    // owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let name = path_string(path)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    owned(call(bpf_cmd::BPF_OBJ_GET, &mut attr)?)
}

/// Pins an object at `path`.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = path_string(path)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = fd_number(object);
    call(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// What kind of object a descriptor is, as the kernel names it in procfs.
pub(crate) fn kind(object: BorrowedFd<'_>) -> Kind {
    let link = format!("/proc/self/fd/{}", object.as_raw_fd());
    let Ok(target) = std::fs::read_link(link) else {
        return Kind::Other;
    };
    let target = target.to_string_lossy().replace('_', "-");
    if target.contains("bpf-map") {
        Kind::Map
    } else if target.contains("bpf-prog") {
        Kind::Program
    } else if target.contains("bpf-link") {
        Kind::Link
    } else {
        Kind::Other
    }
}

fn object_info<T>(object: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: used below only with the kernel's info structs, plain integers.
    let mut info: T = unsafe { std::mem::zeroed() };
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = fd_number(object);
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// A link: where it is and what runs there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LinkInfo {
    /// The kernel's number of the link.
    pub id: u32,
    /// The program it runs.
    pub program: u32,
    /// The interface; 0 once the device is gone or the link was detached.
    pub ifindex: u32,
    /// `bpf_attach_type`; XDP has none.
    pub attach_type: Option<u32>,
}

/// A link to a cgroup: where it is and what runs there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CgroupLink {
    /// The program it runs.
    pub program: u32,
    /// The cgroup; 0 once it is gone or the link was detached.
    pub cgroup: u64,
    /// `bpf_attach_type`.
    pub attach_type: u32,
}

/// Reads the state of a link to a cgroup; `None` if it is another one.
pub(crate) fn cgroup_link_info(link: BorrowedFd<'_>) -> io::Result<Option<CgroupLink>> {
    let info: bpf_link_info = object_info(link)?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        return Ok(None);
    }
    // SAFETY: the type says that the kernel filled in this member.
    let cgroup = unsafe { info.__bindgen_anon_1.cgroup };
    Ok(Some(CgroupLink {
        program: info.prog_id,
        cgroup: cgroup.cgroup_id,
        attach_type: cgroup.attach_type,
    }))
}

/// Attaches a program to a cgroup, beside those of others. It leaves with the descriptor
/// unless the link is pinned.
pub(crate) fn cgroup_link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    // The descriptor has the place of an interface's index.
    link_create(program, fd_number(cgroup), attach_type, 0)
}

/// Reads a link's state; `None` if it is a link of neither TCX nor XDP.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<Option<LinkInfo>> {
    let info: bpf_link_info = object_info(link)?;
    let (ifindex, attach_type) = if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: the type says that the kernel filled in this member.
        let tcx = unsafe { info.__bindgen_anon_1.tcx };
        (tcx.ifindex, Some(tcx.attach_type))
    } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        // SAFETY: as above.
        (unsafe { info.__bindgen_anon_1.xdp }.ifindex, None)
    } else {
        return Ok(None);
    };
    Ok(Some(LinkInfo {
        id: info.id,
        program: info.prog_id,
        ifindex,
        attach_type,
    }))
}

/// Attaches a program to an interface. The program leaves with the descriptor
/// unless the link is pinned.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = fd_number(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = attach_type;
    attr.link_create.flags = flags;
    owned(call(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

/// Replaces a link's program. No packet passes without a program.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_update.link_fd = fd_number(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = fd_number(program);
    call(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link off its interface now. Without this it goes some time after
/// its last pin and descriptor.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_detach.link_fd = fd_number(link);
    call(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Numbers of the TCX links at an interface's hook (Linux 6.6).
pub(crate) fn tcx_links(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    const ROOM: usize = 64;
    let (mut programs, mut links) = ([0u32; ROOM], [0u32; ROOM]);
    let mut attr = zeroed_attr();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = attach_type;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = ROOM as u32;
    call(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the call above has filled in the count.
    let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
    Ok(links
        .iter()
        .copied()
        .take(count)
        .filter(|id| *id != 0)
        .collect())
}

/// Loads a classifier from raw instructions, for feature probes.
pub(crate) fn load_classifier(instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    const SCHED_CLS: u32 = 3;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_3.prog_type = SCHED_CLS;
    attr.__bindgen_anon_3.insn_cnt = instructions.len() as u32;
    attr.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    owned(call_again(bpf_cmd::BPF_PROG_LOAD, &mut attr)?)
}

/// Runs a program once over `packet` and returns its return value.
pub(crate) fn test_run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut out = vec![0u8; packet.len() + 256];
    let mut attr = zeroed_attr();
    attr.test.prog_fd = fd_number(program);
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_size_in = packet.len() as u32;
    attr.test.data_out = out.as_mut_ptr() as u64;
    attr.test.data_size_out = out.len() as u32;
    attr.test.repeat = 1;
    call_again(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the call above has filled in the return value.
    Ok(unsafe { attr.test.retval })
}

/// Shape of a map, as the kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// `bpf_map_type`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value (of one CPU's).
    pub value_size: u32,
    /// Limit of entries; bytes for a ring.
    pub max_entries: u32,
    /// Flags of `BPF_MAP_CREATE`.
    pub flags: u32,
}

/// A map by its descriptor, with rows as bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawMap<'a> {
    fd: BorrowedFd<'a>,
    shape: Shape,
    id: u32,
    /// Bytes of a value as the syscall sees it (all CPUs).
    value_len: usize,
}

impl<'a> RawMap<'a> {
    /// Takes a look at the map behind `fd`.
    pub(crate) fn new(fd: BorrowedFd<'a>) -> io::Result<Self> {
        let info: bpf_map_info = object_info(fd)?;
        let shape = Shape {
            map_type: info.type_,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.map_flags,
        };
        let value_len = if super::shape::is_per_cpu(shape.map_type) {
            let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)?;
            (shape.value_size as usize).next_multiple_of(8) * cpus
        } else {
            shape.value_size as usize
        };
        Ok(Self {
            fd,
            shape,
            id: info.id,
            value_len,
        })
    }

    /// The map's shape.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The kernel's number of the map.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Bytes of a value, of all CPUs together.
    pub(crate) fn value_len(&self) -> usize {
        self.value_len
    }

    fn check_key(&self, key: &[u8]) -> io::Result<()> {
        if key.len() == self.shape.key_size as usize {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "key of another size",
        ))
    }

    fn element(&self, key: &[u8], value: u64, flags: u64) -> io::Result<bpf_attr> {
        self.check_key(key)?;
        let mut attr = zeroed_attr();
        attr.__bindgen_anon_2.map_fd = fd_number(self.fd);
        attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value;
        attr.__bindgen_anon_2.flags = flags;
        Ok(attr)
    }

    fn read_with(&self, cmd: bpf_cmd, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0u8; self.value_len];
        let mut attr = self.element(key, value.as_mut_ptr() as u64, 0)?;
        match call(cmd, &mut attr) {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The row of `key`.
    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.read_with(bpf_cmd::BPF_MAP_LOOKUP_ELEM, key)
    }

    /// Removes the row of `key` and returns what it held at that moment
    /// (hash maps, Linux 5.14).
    pub(crate) fn take(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.read_with(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, key)
    }

    /// Writes a row.
    pub(crate) fn put(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        if value.len() != self.value_len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "value of another size",
            ));
        }
        let mut attr = self.element(key, value.as_ptr() as u64, flags)?;
        call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
    }

    /// Writes `count` rows, keys and values each one after the other, and says how many of
    /// them were written for certain; those after them may be, too.
    pub(crate) fn put_batch(&self, keys: &[u8], values: &[u8], count: u32) -> u32 {
        let rows = count as usize;
        let fits = keys.len() == rows * self.shape.key_size as usize
            && values.len() == rows * self.value_len;
        if !fits {
            return 0;
        }
        let mut attr = zeroed_attr();
        attr.batch.map_fd = fd_number(self.fd);
        attr.batch.keys = keys.as_ptr() as u64;
        attr.batch.values = values.as_ptr() as u64;
        attr.batch.count = count;
        match call(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) {
            Ok(_) => count,
            // A row beyond the end of an array: with this error the kernel says how far it came.
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => {
                // SAFETY: a plain number, which was set above.
                unsafe { attr.batch.count }.min(count)
            }
            Err(_) => 0,
        }
    }

    /// The key after `key`, the first for `None`.
    pub(crate) fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0u8; self.shape.key_size as usize];
        let mut attr = zeroed_attr();
        attr.__bindgen_anon_2.map_fd = fd_number(self.fd);
        if let Some(key) = key {
            self.check_key(key)?;
            attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        }
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
        match call(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => Ok(Some(next)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Bytes that a batch's cursor needs.
    pub(crate) fn cursor_len(&self) -> usize {
        (self.shape.key_size as usize).max(4)
    }

    /// Reads up to `room` rows from `from` on (the start for `None`) and says
    /// whether that was the end. `ENOSPC`: a bucket holds more than `room`.
    pub(crate) fn batch(
        &self,
        from: Option<&[u8]>,
        next: &mut [u8],
        rows: &mut Rows,
        room: u32,
    ) -> io::Result<bool> {
        let cursor = self.cursor_len();
        if next.len() != cursor || from.is_some_and(|f| f.len() != cursor) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "cursor of another size",
            ));
        }
        rows.keys
            .resize(room as usize * self.shape.key_size as usize, 0);
        rows.values.resize(room as usize * self.value_len, 0);
        let mut attr = zeroed_attr();
        attr.batch.map_fd = fd_number(self.fd);
        attr.batch.in_batch = from.map_or(0, |f| f.as_ptr() as u64);
        attr.batch.out_batch = next.as_mut_ptr() as u64;
        attr.batch.keys = rows.keys.as_mut_ptr() as u64;
        attr.batch.values = rows.values.as_mut_ptr() as u64;
        attr.batch.count = room;
        let end = match call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) => return Err(e),
        };
        // SAFETY: the kernel writes the count on success and at the end.
        let count = unsafe { attr.batch.count }.min(room) as usize;
        rows.keys.truncate(count * self.shape.key_size as usize);
        rows.values.truncate(count * self.value_len);
        Ok(end)
    }
}

/// Rows as the kernel returned them, keys beside values.
#[derive(Default, Debug)]
pub(crate) struct Rows {
    /// Keys, one after the other.
    pub keys: Vec<u8>,
    /// Values, one after the other.
    pub values: Vec<u8>,
}

/// Borrows a map that aya holds.
pub(crate) fn raw(map: &aya::maps::MapData) -> io::Result<RawMap<'_>> {
    RawMap::new(map.fd().as_fd())
}
