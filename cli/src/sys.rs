//! The calls of `bpf(2)` that aya has no safe form of: reading a map in
//! batches (Linux 5.6) and a link's interface.
#![expect(unsafe_code, reason = "raw system calls, all of them in this file")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Commands of `bpf(2)`, from `linux/bpf.h`.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Rows asked for at once, at first.
const CHUNK: usize = 4096;
/// Rows asked for at once, at most: one bucket of a hash map must fit.
const LARGEST_CHUNK: usize = 1 << 20;

/// `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The beginning of `BPF_OBJ_GET`'s part of `union bpf_attr`.
#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `info` of `union bpf_attr`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`. XDP, TCX and netkit links have
/// their interface at the same place.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
}

/// Link type of `linux/bpf.h` for programs at sockets.
const BPF_LINK_TYPE_CGROUP: u32 = 3;
/// Link types of `linux/bpf.h` that name an interface.
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
/// Attach types of `linux/bpf.h` for TCX.
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// What a pinned link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// How it is attached.
    pub mode: &'static str,
    /// Id of the program.
    pub program_id: u32,
    /// The interface, if the kind of link has one and it still exists.
    pub ifindex: Option<u32>,
}

/// Calls `bpf(2)` with an attribute of this size.
///
/// # Safety
///
/// `T` is the part of `union bpf_attr` that `command` reads, and its pointers
/// are valid for what `command` reads and writes through them.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: `attr` is valid for reads and writes of its size, which is what
    // the kernel is told; the caller vouches for the pointers in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Keys and values of some rows, one after the other.
pub type Chunk<'a> = (&'a [u8], &'a [u8]);

/// Reads all rows of a hash map or an array, a chunk at a time.
///
/// A hash map that changes meanwhile may give or omit rows that came or went;
/// rows that stay are given once.
pub struct BatchReader<'fd> {
    fd: BorrowedFd<'fd>,
    key_size: usize,
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Where the kernel goes on: the next bucket or index, both 4 bytes.
    position: Option<u32>,
    chunk: usize,
    done: bool,
}

impl<'fd> BatchReader<'fd> {
    /// For a map whose keys and values have these sizes in bytes, as the
    /// kernel tells them; `fd` is a hash map, an LRU hash map, an array, or (Linux 5.13) an array for
    /// each CPU, whose value is that of every CPU that there could be, each a multiple of 8 bytes.
    pub fn new(fd: BorrowedFd<'fd>, key_size: usize, value_size: usize) -> Self {
        Self::with_rows(fd, key_size, value_size, CHUNK)
    }

    /// The same, with `rows` asked for at once at first; for values that are large.
    pub fn with_rows(fd: BorrowedFd<'fd>, key_size: usize, value_size: usize, rows: usize) -> Self {
        Self {
            fd,
            key_size,
            value_size,
            keys: vec![0; rows * key_size],
            values: vec![0; rows * value_size],
            position: None,
            chunk: rows,
            done: false,
        }
    }

    /// The next rows, `None` at the end.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn next_chunk(&mut self) -> io::Result<Option<Chunk<'_>>> {
        while !self.done {
            let position = self.position;
            let mut next = 0u32;
            let mut attr = BatchAttr {
                in_batch: position
                    .as_ref()
                    .map_or(0, |p| std::ptr::from_ref(p) as u64),
                out_batch: std::ptr::from_mut(&mut next) as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: self.chunk as u32,
                map_fd: self.fd.as_raw_fd().cast_unsigned(),
                ..BatchAttr::default()
            };
            // SAFETY: the kernel writes at most `count` keys and values of the map's sizes into
            // vectors of `chunk` times these sizes, and 4 bytes to `next` (a bucket, or an index);
            // all of them outlive the call.
            match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
                Ok(_) => self.position = Some(next),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.done = true,
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && self.chunk < LARGEST_CHUNK => {
                    // A bucket with more rows than the chunk: nothing was read.
                    self.grow();
                    continue;
                }
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => continue,
                Err(e) => return Err(e),
            }
            let count = (attr.count as usize).min(self.chunk);
            if count > 0 {
                let keys = self.keys.get(..count * self.key_size).unwrap_or_default();
                let values = self
                    .values
                    .get(..count * self.value_size)
                    .unwrap_or_default();
                return Ok(Some((keys, values)));
            }
        }
        Ok(None)
    }

    fn grow(&mut self) {
        self.chunk *= 2;
        self.keys.resize(self.chunk * self.key_size, 0);
        self.values.resize(self.chunk * self.value_size, 0);
    }
}

/// What the link pinned at `path` is.
///
/// # Errors
///
/// What the kernel says, for example that the pin is no link.
pub fn pinned_link(path: &Path) -> io::Result<LinkInfo> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let fd = open_pin(&name)?;
    let mut info = RawLinkInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: fd.as_raw_fd().cast_unsigned(),
        info_len: size_of::<RawLinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let has_interface = matches!(info.kind, BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX);
    Ok(LinkInfo {
        mode: match (info.kind, info.attach_type) {
            (BPF_LINK_TYPE_CGROUP, _) => "cgroup",
            (BPF_LINK_TYPE_XDP, _) => "xdp",
            (BPF_LINK_TYPE_TCX, BPF_TCX_INGRESS) => "tcx ingress",
            (BPF_LINK_TYPE_TCX, BPF_TCX_EGRESS) => "tcx egress",
            (BPF_LINK_TYPE_TCX, _) => "tcx",
            _ => "other",
        },
        program_id: info.program_id,
        ifindex: (has_interface && info.ifindex != 0).then_some(info.ifindex),
    })
}

fn open_pin(name: &CString) -> io::Result<OwnedFd> {
    let mut attr = ObjectAttr {
        pathname: name.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: `name` outlives the call and ends with a zero.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
