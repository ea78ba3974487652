//! The stack of each chain of calls, as Linux before 6.8 counts it: the frame of each function
//! rounded up to 32 octets (`check_max_stack_depth` of its verifier). Later kernels round to 16
//! where programs are compiled to machine code, so they take programs that those refuse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use tulle_agent::kernel::loader::OBJECT;

/// What all the frames of a chain may be (`MAX_BPF_STACK`).
const LIMIT: u32 = 512;
const STEP: u32 = 32;

// The instruction set: RFC 9669 §3 to §5.
const CLASS: u8 = 0x07;
const STORE_IMM: u8 = 0x02;
const STORE: u8 = 0x03;
const LOAD: u8 = 0x01;
const LOAD_WIDE: u8 = 0x00;
const ALU: u8 = 0x04;
const ALU64: u8 = 0x07;
const ADD64_IMM: u8 = 0x07;
const MOVE64_REG: u8 = 0xbf;
const CALL: u8 = 0x85;
const LOAD_IMM64: u8 = 0x18;
const FRAME_POINTER: u8 = 10;
/// `src` of a call to a function of the program.
const TO_FUNCTION: u8 = 1;
/// `src` of a load of a function's address.
const OF_FUNCTION: u8 = 4;

/// A function of a program.
#[derive(Default)]
struct Function {
    /// Octets of its frame, as far down as an instruction reaches.
    frame: u32,
    /// Where the functions begin that it calls.
    calls: Vec<usize>,
}

/// The functions of a linked program, by where they begin.
fn functions(program: &[bpf_insn]) -> BTreeMap<usize, Function> {
    let target = |at: usize| {
        let insn = program[at];
        let called = insn.code == CALL && insn.src_reg() == TO_FUNCTION
            || insn.code == LOAD_IMM64 && insn.src_reg() == OF_FUNCTION;
        called.then(|| (at + 1).checked_add_signed(insn.imm as isize).unwrap())
    };
    let mut found = BTreeMap::from([(0, Function::default())]);
    found.extend(
        (0..program.len())
            .filter_map(target)
            .map(|begin| (begin, Function::default())),
    );
    let begins: Vec<usize> = found.keys().copied().collect();
    for (nth, begin) in begins.iter().enumerate() {
        let end = begins.get(nth + 1).copied().unwrap_or(program.len());
        found.insert(
            *begin,
            Function {
                frame: frame(&program[*begin..end]),
                calls: (*begin..end).filter_map(target).collect(),
            },
        );
    }
    found
}

/// How far below the frame pointer a function's instructions reach, in octets.
fn frame(function: &[bpf_insn]) -> u32 {
    // Which registers hold the frame pointer.
    let mut holds = [false; 16];
    holds[usize::from(FRAME_POINTER)] = true;
    let mut lowest = 0;
    for insn in function {
        let (dst, src) = (usize::from(insn.dst_reg()), usize::from(insn.src_reg()));
        let class = insn.code & CLASS;
        match class {
            LOAD if holds[src] => lowest = lowest.min(i32::from(insn.off)),
            STORE | STORE_IMM if holds[dst] => lowest = lowest.min(i32::from(insn.off)),
            ALU64 if insn.code == ADD64_IMM && holds[dst] => lowest = lowest.min(insn.imm),
            _ => {}
        }
        if matches!(class, LOAD | LOAD_WIDE | ALU | ALU64) {
            holds[dst] = insn.code == MOVE64_REG && holds[src];
        }
    }
    lowest.unsigned_abs()
}

/// The deepest chain from a function on: its octets after rounding, and its frames.
fn deepest(functions: &BTreeMap<usize, Function>, begin: usize) -> (u32, Vec<u32>) {
    let function = &functions[&begin];
    let (below, mut frames) = function
        .calls
        .iter()
        .map(|callee| deepest(functions, *callee))
        .max()
        .unwrap_or_default();
    frames.insert(0, function.frame);
    // A function without a frame counts, too.
    (below + function.frame.max(1).next_multiple_of(STEP), frames)
}

#[test]
fn every_chain_of_calls_fits_the_stack_of_old_kernels() {
    let bytes = std::env::var("TULLE_BPF_OBJECT").map_or(Cow::Borrowed(OBJECT), |path| {
        Cow::Owned(std::fs::read(path).expect("the object"))
    });
    let mut object = Object::parse(&bytes).unwrap();
    let texts = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object.relocate_calls(&texts).unwrap();

    let mut chains: Vec<_> = object
        .programs
        .iter()
        .map(|(name, program)| {
            let functions = functions(&object.functions[&program.function_key()].instructions);
            (deepest(&functions, 0), name)
        })
        .collect();
    chains.sort();
    for ((octets, frames), name) in &chains {
        println!("stack {name} {octets} {frames:?}");
    }
    // A count that finds no frames or no calls would find nothing too deep.
    let ((octets, frames), name) = chains.last().unwrap();
    assert!(frames.len() > 1 && frames[0] > 0, "{name}: {frames:?}");
    assert!(*octets <= LIMIT, "{name}: {octets} octets of {frames:?}");
}
