//! What users are told by Events on their objects (pure): faults of objects there, faults of this node at
//! its Node.

use std::collections::BTreeSet;

use super::faults::Part;
use crate::model::{Kind, NamespacedName, ObjectKey, Warning};
use crate::source::cluster::Complaint;

/// What is wrong: `warnings` of objects, `faults` of parts of this node.
pub fn complaints<'a>(
    node: &str,
    ready: bool,
    warnings: &[Warning],
    faults: impl Iterator<Item = (Part, &'a String)>,
) -> BTreeSet<Complaint> {
    let this = ObjectKey {
        kind: Kind::Node,
        name: NamespacedName::new("", node),
    };
    let starting = ready.then(|| Complaint {
        object: this.clone(),
        reason: "Starting",
        note: format!("tulle-agent {} serves the node", env!("CARGO_PKG_VERSION")),
        normal: true,
        own: true,
    });
    let of_objects = warnings.iter().filter_map(|warning| {
        let at = if warning.field.is_empty() {
            String::new()
        } else {
            format!("{}: ", warning.field)
        };
        Some(Complaint {
            object: object(&warning.object)?,
            reason: "NotAsWritten",
            note: format!("{at}{}; {}", warning.problem, warning.mend),
            normal: false,
            // No other node knows this one's Pods.
            own: warning.object.starts_with("Pod "),
        })
    });
    // Without contact nobody could be told of its loss.
    let of_node = faults.filter(|(part, _)| *part != Part::Source);
    let of_node = of_node.map(|(part, sentence)| Complaint {
        object: this.clone(),
        reason: reason(part),
        note: format!("{part}: {sentence}"),
        normal: false,
        own: true,
    });
    starting
        .into_iter()
        .chain(of_node)
        .chain(of_objects)
        .collect()
}

/// Health check ports have kube-proxy's word (KP-158).
const fn reason(part: Part) -> &'static str {
    match part {
        Part::HealthPorts => "FailedToStartServiceHealthcheck",
        _ => "Degraded",
    }
}

/// The object of a warning's text, such as `Service shop/web`.
fn object(text: &str) -> Option<ObjectKey> {
    const KINDS: [Kind; 5] = [
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Node,
        Kind::Pod,
        Kind::ServiceCidr,
    ];
    let (kind, name) = text.split_once(' ')?;
    let kind = KINDS.into_iter().find(|known| known.name() == kind)?;
    let (namespace, name) = if kind.is_cluster_wide() {
        ("", name)
    } else {
        name.split_once('/')?
    };
    Some(ObjectKey {
        kind,
        name: NamespacedName::new(namespace, name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fault;

    #[test]
    fn kp158_objects_and_the_node_have_their_own() {
        let web = object("Service shop/web").unwrap();
        let fault = Fault::new("spec.ports[0]", "is taken", "take another");
        let warnings = [Warning::new(&web, fault.clone()), Warning::new("", fault)];
        let faults = [
            (Part::HealthPorts, "port 30999: in use".to_owned()),
            (Part::Source, "away".to_owned()),
        ];
        let faults = faults.iter().map(|(part, sentence)| (*part, sentence));
        let all = complaints("node-1", true, &warnings, faults);
        let said: Vec<(String, &str, bool)> = all
            .iter()
            .map(|c| (c.object.to_string(), c.reason, c.own))
            .collect();
        assert_eq!(
            said,
            [
                ("Service shop/web".to_owned(), "NotAsWritten", false),
                (
                    "Node node-1".to_owned(),
                    "FailedToStartServiceHealthcheck",
                    true
                ),
                ("Node node-1".to_owned(), "Starting", true),
            ]
        );
        assert!(
            all.iter()
                .any(|c| c.note == "spec.ports[0]: is taken; take another")
        );
    }

    /// Whose they are to tell is decided behind this: who cuts here has all nodes tell the same.
    #[test]
    fn none_of_many_is_left_out() {
        let warning = |n: u32| {
            let object = object(&format!("Service shop/s{n}")).unwrap();
            Warning::new(&object, Fault::new("spec", "is bad", "mend it"))
        };
        let warnings: Vec<Warning> = (0..1000).map(warning).collect();
        let all = complaints("node-1", false, &warnings, [].into_iter());
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn objects_are_found_in_their_names() {
        for text in [
            "Service shop/web",
            "Node node-1",
            "EndpointSlice a/b",
            "ServiceCIDR c",
        ] {
            assert_eq!(object(text).unwrap().to_string(), text);
        }
        assert_eq!(object("a whole file"), None);
    }
}
