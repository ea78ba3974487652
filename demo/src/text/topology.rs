//! The picture of the cluster.

use std::fmt::Write as _;

use super::columns;

/// Nodes in the picture; the others are alike.
const NODES_MAX: usize = 3;
/// Pods of a node in the picture.
const PODS_MAX: usize = 3;
/// Columns between a box's borders.
const INNER: usize = 28;
/// Columns between boxes.
const GAP: usize = 2;

/// A node.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Rows of its own: what, and its value.
    pub rows: Vec<(String, String)>,
    /// Rows of its pods.
    pub pods: Vec<Vec<(String, String)>>,
}

/// Boxes joined by a switch.
pub fn picture(switch: &str, nodes: &[NodeView]) -> String {
    let shown = &nodes[..nodes.len().min(NODES_MAX)];
    let boxes: Vec<Vec<String>> = shown.iter().map(node_box).collect();
    let height = boxes.iter().map(Vec::len).max().unwrap_or(0);
    let mut out = wiring(switch, shown.len());
    for row in 0..height {
        let cells: Vec<String> = boxes
            .iter()
            .map(|lines| {
                let line = lines.get(row).map_or("", String::as_str);
                format!("{line}{}", " ".repeat(INNER + 2 - columns(line)))
            })
            .collect();
        let line = cells.join(&" ".repeat(GAP));
        let _ = writeln!(out, "{}", line.trim_end()); // a String takes it all
    }
    if let [_, .., last] = &nodes[shown.len()..] {
        let first = &nodes[shown.len()].name;
        let _ = writeln!(out, "and {first} to {} beside them, built alike", last.name);
    } else if let Some(one) = nodes.get(shown.len()) {
        let _ = writeln!(out, "and {} beside them, built alike", one.name);
    }
    out
}

/// The switch and the lines from it to the boxes.
fn wiring(switch: &str, boxes: usize) -> String {
    let centers: Vec<usize> = (0..boxes)
        .map(|n| n * (INNER + 2 + GAP) + center())
        .collect();
    let (Some(&first), Some(&last)) = (centers.first(), centers.last()) else {
        return format!("{switch}\n");
    };
    let middle = usize::midpoint(first, last);
    let start = middle.saturating_sub(columns(switch) / 2);
    let line: String = (0..=last)
        .map(|at| match (at, centers.contains(&at)) {
            (at, _) if at < first => ' ',
            (_, true) if first == last => '│',
            (at, true) if at == first => '┌',
            (at, true) if at == last => '┐',
            (at, true) if at == middle => '┼',
            (_, true) => '┬',
            (at, false) if at == middle => '┴',
            _ => '─',
        })
        .collect();
    format!("{}{switch}\n{line}\n", " ".repeat(start))
}

/// Column of a box where its line comes in.
fn center() -> usize {
    INNER / 2 + 1
}

fn node_box(node: &NodeView) -> Vec<String> {
    let title: Vec<char> = format!(" {} ", node.name).chars().collect();
    let top: String = (0..INNER)
        .map(|at| match at.checked_sub(1).and_then(|at| title.get(at)) {
            Some(letter) => *letter,
            None if at + 1 == center() => '┴',
            None => '─',
        })
        .collect();
    let mut lines = vec![format!("┌{top}┐")];
    lines.extend(node.rows.iter().map(cell));
    lines.push(format!("├{}┤", "─".repeat(INNER)));
    let shown = if node.pods.len() > PODS_MAX {
        PODS_MAX - 1
    } else {
        node.pods.len()
    };
    for pod in &node.pods[..shown] {
        lines.extend(pod.iter().map(cell));
    }
    if node.pods.len() > shown {
        let rest = format!("and {} more pods", node.pods.len() - shown);
        lines.push(cell(&("…".to_owned(), rest)));
    }
    lines.push(format!("└{}┘", "─".repeat(INNER)));
    lines
}

fn cell((what, value): &(String, String)) -> String {
    let text = format!("{what:7}{value}");
    let text: String = text.chars().take(INNER - 2).collect();
    format!("│ {text}{} │", " ".repeat(INNER - 2 - columns(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(n: usize, pods: usize) -> NodeView {
        let row = |what: &str, value: String| (what.to_owned(), value);
        NodeView {
            name: format!("node-{n}"),
            rows: vec![row("eth0", format!("192.168.77.{n}"))],
            pods: (1..=pods)
                .map(|k| {
                    vec![
                        row(&format!("pod-{k}"), format!("10.244.{n}.{k}")),
                        row("", format!("fd44:0:0:{n}::{k}")),
                    ]
                })
                .collect(),
        }
    }

    #[test]
    fn one_node_hangs_below_the_switch() {
        let text = picture("switch", &[view(1, 1)]);
        let expected = "            switch
               │
┌─ node-1 ─────┴─────────────┐
│ eth0   192.168.77.1        │
├────────────────────────────┤
│ pod-1  10.244.1.1          │
│        fd44:0:0:1::1       │
└────────────────────────────┘
";
        assert_eq!(text, expected);
    }

    #[test]
    fn lines_meet_their_boxes() {
        for nodes in 1..=3 {
            let views: Vec<NodeView> = (1..=nodes).map(|n| view(n, 2)).collect();
            let text = picture("switch", &views);
            let line = |n: usize| text.lines().nth(n).unwrap().chars().collect::<Vec<_>>();
            let (wires, tops) = (line(1), line(2));
            let down: Vec<usize> = (0..wires.len())
                .filter(|&at| "┌┐┬┼│".contains(wires[at]))
                .collect();
            let into: Vec<usize> = (0..tops.len()).filter(|&at| tops[at] == '┴').collect();
            assert_eq!(down, into, "{text}");
            assert_eq!(down.len(), nodes);
        }
    }

    #[test]
    fn large_clusters_are_cut_and_say_so() {
        let views: Vec<NodeView> = (1..=20).map(|n| view(n, 10)).collect();
        let text = picture("switch", &views);
        assert!(text.contains("and node-4 to node-20 beside them"), "{text}");
        assert!(text.contains("…      and 8 more pods"), "{text}");
        assert!(text.lines().all(|line| columns(line) <= 96), "{text}");
        let text = picture("switch", &views[..4]);
        assert!(text.contains("and node-4 beside them"), "{text}");
    }
}
