//! Tulle's eBPF programs: thin shells around `datapath_core`. A program takes
//! its packet, asks the core, carries the decision out and leaves by `exit`.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))] // for what keeps tail calls apart, and locks

mod apply;
mod ctx;
mod driver;
mod exit;
mod keys;
mod loaded;
mod lock;
mod maps;
mod once;
mod parsed;
mod parts;
mod prog;
mod row;
mod shape;
mod sockets;
mod tables;
mod translate;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The programs have no panic left once compiled; the verifier would
    // refuse this loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
