//! Tables, chains and rules of nftables as messages: the few that Tulle writes itself.

use super::nfnl::{Attributes, INET, Message, NFTABLES, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use super::nft::{CHAIN_NAME, CHAIN_TABLE, DELTABLE, NEWCHAIN, NEWRULE, NEWTABLE, TABLE_NAME};
use super::nft::{
    DATA_VERDICT, ELEMENT, EXPRESSION_DATA, EXPRESSION_NAME, IMMEDIATE_DATA, RULE_CHAIN,
    RULE_EXPRESSIONS, RULE_TABLE,
};

// From `linux/netfilter/nf_tables.h`.
const TABLE_FLAGS: u16 = 2;
const OWNED: u32 = 2;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const DATA_VALUE: u16 = 1;
const VERDICT_CODE: u16 = 1;
const DREG: u16 = 1;
const NF_DROP: u32 = 0;
const REGISTER: u32 = 1;
const EQUAL: u32 = 0;
const DIFFERENT: u32 = 1;

/// Where a chain of a table of both families is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// Number of the hook: 0 before routing, 1 for this node, 4 behind routing.
    pub number: u32,
    /// Its turn among others.
    pub priority: i32,
}

/// What of a packet, or of its flow, is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The address family.
    Family,
    /// IP protocol.
    Protocol,
    /// Octets from a place in the IP header, so many.
    Network(u32, u32),
    /// The same in the header behind it.
    Transport(u32, u32),
}

/// A table; an `owned` one goes with the socket that made it.
pub fn table(name: &str, owned: bool) -> Message {
    let mut table = Attributes::default().text(TABLE_NAME, name);
    if owned {
        table = table.word(TABLE_FLAGS, OWNED);
    }
    Message::new(NFTABLES, NEWTABLE, INET, table).flags(NLM_F_CREATE | NLM_F_EXCL)
}

/// A table's end.
pub fn no_table(name: &str) -> Message {
    let table = Attributes::default().text(TABLE_NAME, name);
    Message::new(NFTABLES, DELTABLE, INET, table)
}

/// A chain.
pub fn chain(table: &str, name: &str, hook: Hook) -> Message {
    let at = Attributes::default()
        .word(HOOK_NUMBER, hook.number)
        .word(HOOK_PRIORITY, hook.priority.cast_unsigned());
    let chain = Attributes::default()
        .text(CHAIN_TABLE, table)
        .text(CHAIN_NAME, name)
        .nest(CHAIN_HOOK, &at)
        .text(CHAIN_TYPE, hook.kind);
    Message::new(NFTABLES, NEWCHAIN, INET, chain).flags(NLM_F_CREATE)
}

/// A rule of these expressions.
pub fn rule(table: &str, chain: &str, expressions: &[Attributes]) -> Message {
    let list = expressions
        .iter()
        .fold(Attributes::default(), |list, expression| {
            list.nest(ELEMENT, expression)
        });
    let rule = Attributes::default()
        .text(RULE_TABLE, table)
        .text(RULE_CHAIN, chain)
        .nest(RULE_EXPRESSIONS, &list);
    Message::new(NFTABLES, NEWRULE, INET, rule).flags(NLM_F_CREATE | NLM_F_APPEND)
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::default()
        .text(EXPRESSION_NAME, name)
        .nest(EXPRESSION_DATA, data)
}

/// Reads a word of a flow: 0 its state, 2 its status.
pub fn flow(key: u32) -> Attributes {
    const KEY: u16 = 2;
    let data = Attributes::default().word(DREG, REGISTER).word(KEY, key);
    expression("ct", &data)
}

/// Goes on if the word that was read has one of these bits.
pub fn has(bits: u32) -> [Attributes; 2] {
    const SREG: u16 = 1;
    const TO: u16 = 2;
    const LENGTH: u16 = 3;
    const MASK: u16 = 4;
    const XOR: u16 = 5;
    let value = |value: u32| Attributes::default().bytes(DATA_VALUE, &value.to_ne_bytes());
    let mask = Attributes::default()
        .word(SREG, REGISTER)
        .word(TO, REGISTER)
        .word(LENGTH, 4)
        .nest(MASK, &value(bits))
        .nest(XOR, &value(0));
    [
        expression("bitwise", &mask),
        compare(DIFFERENT, &0_u32.to_ne_bytes()),
    ]
}

fn compare(how: u32, value: &[u8]) -> Attributes {
    const SREG: u16 = 1;
    const OPERATION: u16 = 2;
    const DATA: u16 = 3;
    let value = Attributes::default().bytes(DATA_VALUE, value);
    let data = Attributes::default()
        .word(SREG, REGISTER)
        .word(OPERATION, how)
        .nest(DATA, &value);
    expression("cmp", &data)
}

/// Goes on if a field has this value.
pub fn is(field: Field, value: &[u8]) -> [Attributes; 2] {
    const META_KEY: u16 = 2;
    const NFPROTO: u32 = 15;
    const L4PROTO: u32 = 16;
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    let meta = |key| {
        let data = Attributes::default()
            .word(DREG, REGISTER)
            .word(META_KEY, key);
        expression("meta", &data)
    };
    let payload = |base, offset, length| {
        let data = Attributes::default()
            .word(DREG, REGISTER)
            .word(BASE, base)
            .word(OFFSET, offset)
            .word(LENGTH, length);
        expression("payload", &data)
    };
    let read = match field {
        Field::Family => meta(NFPROTO),
        Field::Protocol => meta(L4PROTO),
        Field::Network(offset, length) => payload(1, offset, length),
        Field::Transport(offset, length) => payload(2, offset, length),
    };
    [read, compare(EQUAL, value)]
}

/// Drops the packet.
pub fn drop() -> Attributes {
    const VERDICT_REGISTER: u32 = 0;
    let verdict = Attributes::default().word(VERDICT_CODE, NF_DROP);
    let value = Attributes::default().nest(DATA_VERDICT, &verdict);
    let data = Attributes::default()
        .word(DREG, VERDICT_REGISTER)
        .nest(IMMEDIATE_DATA, &value);
    expression("immediate", &data)
}
