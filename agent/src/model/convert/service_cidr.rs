//! networking.k8s.io/v1 ServiceCIDR.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;

use super::{Converted, name};
use crate::model::address::{not_unicast, parse_net};
use crate::model::{Family, Fault, ServiceCidr};

/// Converts a ServiceCIDR.
pub fn service_cidr(from: &api::ServiceCIDR) -> Result<Converted<ServiceCidr>, Fault> {
    let listed = from
        .spec
        .iter()
        .flat_map(|spec| spec.cidrs.iter().flatten());
    let mut cidrs: Vec<IpNet> = Vec::with_capacity(2);
    for (i, text) in listed.enumerate() {
        let field = format!("spec.cidrs[{i}]");
        let mend = "write a network such as 10.96.0.0/12 or fd00:10:96::/112";
        let net = parse_net(text)
            .ok_or_else(|| Fault::new(&field, format!("{text:?} is not a network"), mend))?;
        if net.prefix_len() == 0 || not_unicast(net.addr()).is_some() {
            let problem = format!("{net} cannot hold addresses of Services");
            return Err(Fault::new(field, problem, mend));
        }
        let family = Family::of(net.addr());
        if let Some(other) = cidrs.iter().find(|cidr| Family::of(cidr.addr()) == family) {
            return Err(Fault::new(
                field,
                format!("{net} is {} like {other}", family.name()),
                "write one network of each family, and a ServiceCIDR for each further one",
            ));
        }
        cidrs.push(net);
    }
    if cidrs.is_empty() {
        return Err(Fault::new(
            "spec.cidrs",
            "is missing or empty",
            "list the network that Services have their addresses from",
        ));
    }
    let object = ServiceCidr {
        name: name(&from.metadata)?.to_owned(),
        cidrs,
    };
    Ok(Converted {
        object,
        notes: Vec::new(),
    })
}
