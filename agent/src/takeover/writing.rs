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
/// `NFT_REG32_00`, of four octets each.
const FIRST_SHORT_REGISTER: u32 = 8;
const NEWSET: u8 = 9;
const NEWSETELEM: u8 = 12;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
/// Keys in a message, whose list has less than 64 KiB.
const KEYS: usize = 1000;
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
    /// The address that the flow's client asked, of so many octets.
    AskedAddress(u32),
    /// Its port.
    AskedPort,
}

impl Field {
    const fn octets(self) -> u32 {
        match self {
            Self::Family | Self::Protocol => 1,
            Self::AskedPort => 2,
            Self::Network(_, length) | Self::Transport(_, length) | Self::AskedAddress(length) => {
                length
            }
        }
    }
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
    [load(field, REGISTER), compare(EQUAL, value)]
}

/// Goes on if these fields, one behind the other, are a key of the set. Each begins at a multiple
/// of four octets, as in [`key`].
pub fn is_in(set: &str, fields: &[Field]) -> Vec<Attributes> {
    const SET: u16 = 1;
    const SREG: u16 = 2;
    let mut register = FIRST_SHORT_REGISTER;
    let mut expressions = Vec::new();
    for field in fields {
        expressions.push(load(*field, register));
        register += field.octets().div_ceil(4);
    }
    let data = Attributes::default()
        .text(SET, set)
        .word(SREG, FIRST_SHORT_REGISTER);
    expressions.push(expression("lookup", &data));
    expressions
}

/// What a set has of some fields' values.
pub fn key(values: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::new();
    for value in values {
        key.extend_from_slice(value);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

/// A set of keys of these fields.
pub fn set(table: &str, name: &str, id: u32, fields: &[Field]) -> Message {
    const KEY_LENGTH: u16 = 5;
    const ID: u16 = 10;
    let octets: u32 = fields
        .iter()
        .map(|field| field.octets().div_ceil(4) * 4)
        .sum();
    let set = Attributes::default()
        .text(SET_TABLE, table)
        .text(SET_NAME, name)
        .word(KEY_LENGTH, octets)
        .word(ID, id);
    Message::new(NFTABLES, NEWSET, INET, set).flags(NLM_F_CREATE | NLM_F_EXCL)
}

/// Puts keys into a set, as many as a message has room for in each.
pub fn elements(table: &str, set: &str, keys: &[Vec<u8>]) -> Vec<Message> {
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    let message = |keys: &[Vec<u8>]| {
        let list = keys.iter().fold(Attributes::default(), |list, key| {
            let value = Attributes::default().bytes(DATA_VALUE, key);
            list.nest(ELEMENT, &Attributes::default().nest(KEY, &value))
        });
        let elements = Attributes::default()
            .text(SET_TABLE, table)
            .text(SET_NAME, set)
            .nest(ELEMENTS, &list);
        Message::new(NFTABLES, NEWSETELEM, INET, elements).flags(NLM_F_CREATE)
    };
    keys.chunks(KEYS).map(message).collect()
}

/// Reads a field into a register, and the next ones if it is longer.
fn load(field: Field, register: u32) -> Attributes {
    const META_KEY: u16 = 2;
    const NFPROTO: u32 = 15;
    const L4PROTO: u32 = 16;
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    const CT_KEY: u16 = 2;
    const CT_DIRECTION: u16 = 3;
    const PROTO_DST: u32 = 12;
    const DST_IP: u32 = 20;
    const DST_IP6: u32 = 22;
    let data = Attributes::default().word(DREG, register);
    let meta = |key| expression("meta", &data.clone().word(META_KEY, key));
    let payload = |base, offset, length| {
        let place = data.clone().word(BASE, base).word(OFFSET, offset);
        expression("payload", &place.word(LENGTH, length))
    };
    // Of the direction of the flow's client.
    let original = |key| {
        let data = data.clone().word(CT_KEY, key);
        expression("ct", &data.bytes(CT_DIRECTION, &[0]))
    };
    match field {
        Field::Family => meta(NFPROTO),
        Field::Protocol => meta(L4PROTO),
        Field::Network(offset, length) => payload(1, offset, length),
        Field::Transport(offset, length) => payload(2, offset, length),
        Field::AskedAddress(4) => original(DST_IP),
        Field::AskedAddress(_) => original(DST_IP6),
        Field::AskedPort => original(PROTO_DST),
    }
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
