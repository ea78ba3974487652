//! YAML, and JSON as a part of it, with the line of everything in it.

use std::fmt;

use anyhow::anyhow;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and where it is.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Line of its key, or of itself where it has none; the first is 1.
    pub line: u64,
    /// The value.
    pub value: Value,
}

/// What a value can be. Whole numbers and booleans are text here: options know their own form.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar.
    Text(String),
    /// A number of which the text is lost: `1.10` is 1.1.
    Float(f64),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in its order.
    Map(Vec<(String, Node)>),
}

impl Value {
    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The texts of a sequence's nodes, which must be texts all.
    pub fn texts(nodes: &[Node]) -> Result<Vec<String>, String> {
        let texts = nodes
            .iter()
            .map(|node| node.value.text().map(str::to_owned));
        let texts: Option<Vec<String>> = texts.collect();
        texts.ok_or_else(|| "the list is to hold texts only".to_owned())
    }

    /// Whether the text of a number is lost.
    pub const fn is_float(&self) -> bool {
        matches!(self, Self::Float(_))
    }

    /// The value of this key, where this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Self::Map(entries) = self else {
            return None;
        };
        entries.iter().find(|(name, _)| name == key).map(|e| &e.1)
    }
}

/// The documents of a file that are not empty. The error names the line.
pub fn documents(text: &str) -> anyhow::Result<Vec<Node>> {
    // `off` and `no` are words here, as in YAML 1.2.
    let options = serde_saphyr::options! { strict_booleans: true };
    let read: Result<Vec<Spanned<Value>>, _> =
        serde_saphyr::from_multiple_with_options(text, options);
    let documents = read.map_err(|error| {
        let said = error.without_snippet().to_string();
        match error.location() {
            // The position is in the sentence as well: the line alone goes before it.
            Some(at) => anyhow!("line {}: {said}", at.line()),
            None => anyhow!("{said}"),
        }
    })?;
    let nodes = documents.into_iter().map(|spanned| Node {
        line: spanned.referenced.line(),
        value: spanned.value,
    });
    Ok(nodes.filter(|node| node.value != Value::Null).collect())
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of YAML")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(spanned) = access.next_element::<Spanned<Value>>()? {
            nodes.push(Node {
                line: spanned.referenced.line(),
                value: spanned.value,
            });
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let node = Node {
                line: key.referenced.line(),
                value: access.next_value()?,
            };
            entries.push((key.value, node));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_its_line() {
        let text =
            "# first\na: 1\nb:\n  c: true\n  d: [x,\n    2.5]\ne: ~\n---\n---\n{\"f\": null}\n";
        let read = documents(text).unwrap();
        assert_eq!(read.len(), 2);
        let line = |key: &str| read[0].value.get(key).unwrap().line;
        assert_eq!((line("a"), line("b"), line("e")), (2, 3, 7));
        let b = &read[0].value.get("b").unwrap().value;
        let (c, d) = (b.get("c").unwrap(), b.get("d").unwrap());
        assert_eq!((c.line, c.value.text()), (4, Some("true")));
        let Value::List(d) = &d.value else {
            panic!("{d:?}")
        };
        assert_eq!((d[0].line, d[1].line), (5, 6));
        assert_eq!(d[1].value, Value::Float(2.5));
        assert_eq!(read[1].value.get("f").unwrap().value, Value::Null);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line) in [
            ("a: 1\nb: [1\n", "line "),
            ("a: 1\nb: 2\na: 3\n", "line 3: "),
            ("a: 1\n\tb: 2\n", "line "),
        ] {
            let error = documents(text).unwrap_err().to_string();
            assert!(error.starts_with(line), "{text:?}: {error}");
        }
        assert_eq!(documents("").unwrap(), []);
        assert_eq!(documents("# nothing\n").unwrap(), []);
    }
}
