//! Values of kube-proxy's as Tulle's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use http::Uri;

use crate::model::Scheduler;

/// What became of a value.
#[derive(PartialEq, Eq, Debug)]
pub enum Converted {
    /// Values of Tulle's option.
    Values(Vec<String>),
    /// It means nothing here: why.
    Nothing(String),
    /// It is wrong: why.
    Wrong(String),
}

fn one(values: &[String]) -> &str {
    values.last().map_or("", |value| value.trim())
}

fn is(value: &(impl ToString + ?Sized)) -> Converted {
    Converted::Values(vec![value.to_string()])
}

/// As it is.
pub fn plain(values: &[String]) -> Converted {
    is(one(values))
}

/// All of them with commas between.
pub fn joined(values: &[String]) -> Converted {
    is(&values.join(","))
}

/// A name as the Node has it (`hostnameOverride`).
pub fn lower_case(values: &[String]) -> Converted {
    is(&one(values).to_lowercase())
}

/// Where `/healthz` answers; port 10256 unless another is said, and nowhere with port 0 or an
/// empty text.
pub fn health_address(values: &[String]) -> Converted {
    listen(one(values), 10_256)
}

/// Where `/metrics` answers; port 10249 unless another is said.
pub fn metrics_address(values: &[String]) -> Converted {
    listen(one(values), 10_249)
}

/// The address of a flag and the port of another, as kube-proxy joins them: port 0 is nowhere,
/// and an address keeps a port that it has.
pub fn with_port(address: Option<&str>, port: &str, unspecified: Ipv4Addr) -> Converted {
    match (port.trim().parse::<u16>(), address.map(str::trim)) {
        (Err(_), _) => Converted::Wrong(format!("{port:?} is no port from 0 to 65535")),
        (Ok(0), _) => is("off"),
        (Ok(port), None) => is(&SocketAddr::new(unspecified.into(), port)),
        (Ok(port), Some(address)) => listen(address, port),
    }
}

fn listen(text: &str, default_port: u16) -> Converted {
    if text.is_empty() {
        return is("off");
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let any = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, default_port)),
        Err(_) => match text.strip_prefix(':') {
            Some(port) => port.parse().ok().map(any),
            None => text.parse().ok(),
        },
    };
    match address {
        Some(address) if address.port() == 0 => is("off"),
        Some(address) => is(&address),
        None => Converted::Wrong(format!(
            "{text:?} is no address with or without a port, such as 0.0.0.0:{default_port}"
        )),
    }
}

/// kubeadm's names a file that is in kube-proxy's own pods only.
pub fn kubeconfig(values: &[String]) -> Converted {
    let path = one(values);
    if Path::new(path).exists() {
        return is(path);
    }
    Converted::Nothing(format!(
        "there is no {path} here; the pod's service account is used, or what --kubeconfig names"
    ))
}

/// `--master` is one more address to try.
pub fn server(values: &[String]) -> Converted {
    let text = one(values);
    let uri: Option<Uri> = text.parse().ok();
    let host = uri.as_ref().and_then(|uri| Some((uri, uri.host()?)));
    match host {
        Some((uri, host)) if uri.scheme_str() == Some("https") => {
            is(&format!("{host}:{}", uri.port_u16().unwrap_or(443)))
        }
        Some((uri, _)) if uri.scheme_str() == Some("http") => Converted::Nothing(
            "API servers are asked by TLS; name one that does without in a kubeconfig".to_owned(),
        ),
        _ => Converted::Wrong(format!(
            "{text:?} is no address of an API server, such as https://192.0.2.10:6443"
        )),
    }
}

/// Schedulers of IPVS that Tulle has too.
pub fn scheduler(values: &[String]) -> Converted {
    let name = one(values);
    match name.parse::<Scheduler>() {
        Ok(_) => is(name),
        Err(_) => Converted::Nothing(format!(
            "there is no scheduler {name}; new flows go to any backend (--scheduler has those that there are)"
        )),
    }
}

/// klog's levels: 4 and 5 tell of objects, 6 and more of each call.
pub fn verbosity(values: &[String]) -> Converted {
    let text = one(values);
    match text.parse::<i32>() {
        Ok(..4) => is("info"),
        Ok(4..6) => is("info,tulle_agent=debug"),
        Ok(6..) => is("debug"),
        Err(_) => Converted::Wrong(format!("{text:?} is no number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(convert: fn(&[String]) -> Converted, text: &str) -> Converted {
        convert(&[text.to_owned()])
    }

    #[test]
    fn addresses_get_kube_proxy_s_ports() {
        for (text, wanted) in [
            ("", "off"),
            ("0.0.0.0", "0.0.0.0:10256"),
            ("::", "[::]:10256"),
            ("[::1]", "[::1]:10256"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("[::]:7", "[::]:7"),
            (":10000", "0.0.0.0:10000"),
            ("127.0.0.1:0", "off"),
        ] {
            assert_eq!(of(health_address, text), is(wanted), "{text}");
        }
        assert_eq!(of(metrics_address, "::1"), is("[::1]:10249"));
        for bad in ["host:1", "1.2.3", ":x", "1.2.3.4:70000"] {
            assert!(
                matches!(of(health_address, bad), Converted::Wrong(_)),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_address_and_a_port_are_joined() {
        let of = |address, port| with_port(address, port, Ipv4Addr::LOCALHOST);
        assert_eq!(of(None, "9"), is("127.0.0.1:9"));
        assert_eq!(of(Some("192.0.2.1"), "9"), is("192.0.2.1:9"));
        assert_eq!(of(Some("192.0.2.1:8"), "9"), is("192.0.2.1:8"));
        assert_eq!(of(Some("192.0.2.1:8"), "0"), is("off"));
        assert!(matches!(of(None, "-1"), Converted::Wrong(_)));
    }

    #[test]
    fn servers_have_a_port() {
        assert_eq!(of(server, "https://192.0.2.1:6443"), is("192.0.2.1:6443"));
        assert_eq!(of(server, "https://api.example"), is("api.example:443"));
        assert_eq!(of(server, "https://[::1]/x"), is("[::1]:443"));
        assert!(matches!(of(server, "http://a:8080"), Converted::Nothing(_)));
        assert!(matches!(of(server, "/x"), Converted::Wrong(_)));
    }

    #[test]
    fn levels_and_schedulers() {
        assert_eq!(of(verbosity, "2"), is("info"));
        assert_eq!(of(verbosity, "-1"), is("info"));
        assert_eq!(of(verbosity, "9"), is("debug"));
        assert!(matches!(of(verbosity, "x"), Converted::Wrong(_)));
        assert_eq!(of(scheduler, "wrr"), is("wrr"));
        assert!(matches!(of(scheduler, "nq"), Converted::Nothing(_)));
    }

    #[test]
    fn a_kubeconfig_that_is_not_here_is_told() {
        let path = "/var/lib/kube-proxy/kubeconfig.conf";
        assert!(matches!(of(kubeconfig, path), Converted::Nothing(_)));
        assert_eq!(of(kubeconfig, "/proc/self/status"), is("/proc/self/status"));
    }
}
