//! How requests spread, as bars.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::columns;

/// Columns of the longest bar.
const LONGEST: usize = 40;
/// With more pods only nodes are shown.
const PODS_MAX: usize = 24;

/// A node with its pods, in order.
#[derive(Clone, Debug)]
pub struct NodePods {
    /// Name of the node.
    pub node: String,
    /// Names of its pods that are backends.
    pub pods: Vec<String>,
}

/// A bar for each node and pod, by the requests that each answered.
pub fn spread(nodes: &[NodePods], by_pod: &BTreeMap<String, usize>, client: &str) -> String {
    let of = |pod: &String| by_pod.get(pod).copied().unwrap_or(0);
    let total: usize = by_pod.values().sum();
    let mut rows = Vec::new();
    let show_pods = nodes.iter().map(|node| node.pods.len()).sum::<usize>() <= PODS_MAX;
    for node in nodes {
        let sum = node.pods.iter().map(of).sum::<usize>();
        rows.push((node.node.clone(), sum, '█', ""));
        if show_pods {
            for pod in &node.pods {
                let note = if pod == client {
                    "  the client itself"
                } else {
                    ""
                };
                rows.push((format!("  {pod}"), of(pod), '▒', note));
            }
        }
    }
    let longest = rows.iter().map(|row| row.1).max().unwrap_or(0).max(1);
    let width = rows.iter().map(|row| columns(&row.0)).max().unwrap_or(0);
    let mut out = String::new();
    for (name, n, block, note) in rows {
        let bar = block.to_string().repeat((n * LONGEST).div_ceil(longest));
        let percent = f64::from(n as u32) * 100.0 / f64::from(total.max(1) as u32);
        let line = format!("{name:width$}  {n:>4}  {percent:>5.1} %  {bar}{note}");
        let _ = writeln!(out, "{}", line.trim_end()); // a String takes it all
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: usize, pods: usize) -> NodePods {
        NodePods {
            node: format!("node-{n}"),
            pods: (1..=pods).map(|k| format!("node-{n}-pod-{k}")).collect(),
        }
    }

    #[test]
    fn bars_are_in_proportion() {
        let counts = BTreeMap::from([("node-1-pod-1".into(), 10), ("node-2-pod-1".into(), 30)]);
        let text = spread(&[node(1, 1), node(2, 1)], &counts, "node-1-pod-1");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "node-1            10   25.0 %  ██████████████");
        assert_eq!(
            lines[1],
            "  node-1-pod-1    10   25.0 %  ▒▒▒▒▒▒▒▒▒▒▒▒▒▒  the client itself"
        );
        assert_eq!(lines[3].matches('▒').count(), LONGEST);
    }

    #[test]
    fn a_pod_without_requests_has_no_bar() {
        let text = spread(&[node(1, 1)], &BTreeMap::new(), "");
        assert_eq!(
            text,
            "node-1             0    0.0 %\n  node-1-pod-1     0    0.0 %\n"
        );
    }

    #[test]
    fn many_pods_are_left_out() {
        let nodes: Vec<NodePods> = (1..=20).map(|n| node(n, 10)).collect();
        assert_eq!(spread(&nodes, &BTreeMap::new(), "").lines().count(), 20);
    }
}
