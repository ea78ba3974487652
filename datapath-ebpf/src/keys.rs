//! Keys of maps, written for the processor.
//!
//! The kernel hashes keys in words of 32 bits. A word that was written in pieces just before is not
//! in the processor's store buffer as a whole: reading it waits until all pieces are in the cache,
//! some nanoseconds for each. So the keys are written as the words that are read.

use core::ptr;

use datapath_common::{Address, FlowKey, FrontendKey};

/// A [`FrontendKey`] in words.
#[repr(C)]
pub struct FrontendWords<A> {
    addr: A,
    rest: u32,
}

impl<A: Address> FrontendWords<A> {
    /// Of a key.
    #[inline(always)]
    pub fn new(key: &FrontendKey<A>) -> Self {
        let [low, high] = key.port.to_ne_bytes();
        Self {
            addr: key.addr,
            rest: u32::from_ne_bytes([low, high, key.proto, key.scope]),
        }
    }
    /// The key.
    #[inline(always)]
    pub fn key(&self) -> &FrontendKey<A> {
        const { assert!(size_of::<Self>() == size_of::<FrontendKey<A>>()) };
        const { assert!(align_of::<Self>() >= align_of::<FrontendKey<A>>()) };
        // SAFETY: the same size, the same octets, plain data.
        unsafe { &*ptr::from_ref(self).cast() }
    }
}

/// Writes a [`FlowKey`] in words.
///
/// # Safety
/// `to` is valid for writes.
#[inline(always)]
pub unsafe fn write_flow_key<A: Address>(to: *mut FlowKey<A>, key: &FlowKey<A>) {
    #[repr(C)]
    struct Words<A> {
        src: A,
        dst: A,
        ports: u32,
        rest: u32,
    }
    const { assert!(size_of::<Words<A>>() == size_of::<FlowKey<A>>()) };
    let ([a, b], [c, d]) = (key.sport.to_ne_bytes(), key.dport.to_ne_bytes());
    let [e, f] = key.reserved.to_ne_bytes();
    let to = to.cast::<Words<A>>();
    // SAFETY: the caller's; the same size, the same octets, plain data; rows are aligned to words.
    unsafe {
        (*to).src = key.src;
        (*to).dst = key.dst;
        (*to).ports = u32::from_ne_bytes([a, b, c, d]);
        (*to).rest = u32::from_ne_bytes([key.proto, key.direction, e, f]);
    }
}
