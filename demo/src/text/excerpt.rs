//! Parts of files and of commands' output.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Endpoints that an excerpt shows.
const ENDPOINTS: usize = 2;

/// The Service and the first `EndpointSlice` of a file of manifests, the
/// latter with its first endpoints.
pub fn manifests(yaml: &str) -> String {
    let mut documents = yaml.split("---\n");
    let mut out = documents.next().unwrap_or_default().to_owned();
    if let Some(slice) = documents.next() {
        out.push_str("---\n");
        out.push_str(&slice_head(slice));
    }
    match documents.count() {
        0 => {}
        1 => out.push_str("--- # and an EndpointSlice like it for IPv6\n"),
        n => out.extend(["--- # and ", &n.to_string(), " documents more\n"]),
    }
    out
}

fn slice_head(slice: &str) -> String {
    let is_endpoint = |line: &str| line.starts_with("  - addresses:");
    let total = slice.lines().filter(|line| is_endpoint(line)).count();
    let mut seen = 0;
    let mut out = String::new();
    for line in slice.lines() {
        seen += usize::from(is_endpoint(line));
        if seen > ENDPOINTS {
            out.extend(["  # … ", &(total - ENDPOINTS).to_string(), " more\n"]);
            break;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// The first lines of a command's output, and how many are left out.
pub fn head(text: &str, most: usize) -> String {
    let total = text.lines().count();
    if total <= most {
        return text.to_owned();
    }
    let lines: Vec<&str> = text.lines().take(most - 1).collect();
    format!(
        "{}\n… {} lines more\n",
        lines.join("\n"),
        total - lines.len()
    )
}

/// A row as `bpftool -j map dump` prints it if the map has BTF.
#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    formatted: Formatted<'a>,
}

/// Key and value with the names of their fields, in the order of the layout.
#[derive(Deserialize)]
struct Formatted<'a> {
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// The first rows of a map whose key is `wanted`, a line for each key and value.
pub fn map_rows(
    dump: &str,
    wanted: impl Fn(&Value) -> bool,
    most: usize,
) -> serde_json::Result<Vec<String>> {
    let mut lines = Vec::new();
    for Row { formatted } in serde_json::from_str::<Vec<Row<'_>>>(dump)? {
        if lines.len() < most * 2 && wanted(&serde_json::from_str(formatted.key.get())?) {
            lines.push(format!("key    {}", spaced(formatted.key)));
            lines.push(format!("value  {}", spaced(formatted.value)));
        }
    }
    Ok(lines)
}

/// JSON of names and numbers, easier to read.
fn spaced(json: &RawValue) -> String {
    json.get()
        .replace('"', "")
        .replace(':', ": ")
        .replace(',', ", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_slice_is_cut() {
        let endpoint = "  - addresses: [10.0.0.1]\n    nodeName: a\n";
        let slice = format!("kind: EndpointSlice\nendpoints:\n{}", endpoint.repeat(5));
        let text = manifests(&format!(
            "kind: Service\n---\n{slice}---\nkind: EndpointSlice\n"
        ));
        assert_eq!(text.matches("addresses").count(), ENDPOINTS);
        assert!(
            text.starts_with("kind: Service\n---\nkind: EndpointSlice\n"),
            "{text}"
        );
        assert!(text.contains("  # … 3 more\n"), "{text}");
        assert!(
            text.ends_with("--- # and an EndpointSlice like it for IPv6\n"),
            "{text}"
        );
    }

    #[test]
    fn a_short_file_is_whole() {
        let text = "kind: Service\n---\nkind: EndpointSlice\nendpoints: []\n";
        assert_eq!(manifests(text), text);
    }

    #[test]
    fn long_output_is_cut_and_says_so() {
        assert_eq!(head("a\nb\nc\n", 3), "a\nb\nc\n");
        assert_eq!(head("a\nb\nc\nd\n", 3), "a\nb\n… 2 lines more\n");
    }

    #[test]
    fn map_rows_have_field_names() {
        let dump = r#"[{"key":["0x0a"],"value":["0x01"],"formatted":
            {"key":{"port":80,"addr":{"octets":[10,96]}},"value":{"len":6}}},
            {"key":["0x0b"],"value":["0x00"],"formatted":{"key":{"port":0},"value":{"len":0}}}]"#;
        let rows = map_rows(dump, |key| key["port"] == 80, 5).unwrap();
        assert_eq!(
            rows,
            [
                "key    {port: 80, addr: {octets: [10, 96]}}",
                "value  {len: 6}"
            ]
        );
        assert_eq!(map_rows(dump, |_| true, 1).unwrap().len(), 2);
        let without_btf = r#"[{"key":["0x0a"],"value":["0x01"]}]"#;
        assert!(map_rows(without_btf, |_| true, 1).is_err());
    }
}
