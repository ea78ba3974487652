//! A packet whose octets are copied in and out by helper calls: slower than by
//! pointers, but no offset is beyond the verifier.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use bytemuck::Pod;
use datapath_common::Reason;
use datapath_core::Packet;

/// A packet at a TC hook.
pub struct Loaded(*mut __sk_buff);

impl Loaded {
    /// The program's packet.
    #[inline(always)]
    pub fn new(raw: *mut __sk_buff) -> Self {
        Self(raw)
    }

    /// Writes at `at`. Pointers into the packet are void afterwards.
    #[inline(always)]
    pub fn write<T: Pod>(&self, at: usize, value: T) -> Result<(), Reason> {
        // SAFETY: the value lives on the stack and has the size given; the kernel
        // checks the offset.
        let failed = unsafe {
            bpf_skb_store_bytes(
                self.0,
                at as u32,
                (&raw const value).cast(),
                size_of::<T>() as u32,
                0,
            )
        };
        if failed == 0 {
            Ok(())
        } else {
            Err(Reason::RewriteFailed)
        }
    }
}

impl Packet for Loaded {
    #[inline(always)]
    fn read<T: Pod>(&self, at: usize) -> Result<T, Reason> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: room on the stack of the size given; the kernel checks the offset.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.0.cast(),
                at as u32,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        if failed == 0 {
            // SAFETY: the helper has filled it in; every bit pattern is valid.
            Ok(unsafe { value.assume_init() })
        } else {
            Err(Reason::Truncated)
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the program's own context.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: the program's own context.
        u16::from_be(unsafe { (*self.0).protocol } as u16)
    }

    #[inline(always)]
    fn opaque(&self, value: u64) -> u64 {
        value
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: the program's own context.
        unsafe { (*self.0).vlan_present != 0 }
    }
}
