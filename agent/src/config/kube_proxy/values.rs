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

/// Where `/healthz` answers; port 10256 unless another is said.
pub fn health_address(values: &[String]) -> Converted {
    listen(one(values), 10_256)
}

/// Where `/metrics` answers; port 10249 unless another is said.
pub fn metrics_address(values: &[String]) -> Converted {
    listen(one(values), 10_249)
}

/// `--healthz-port`, on all addresses.
pub fn health_port(values: &[String]) -> Converted {
    port(one(values), Ipv4Addr::UNSPECIFIED)
}

/// `--metrics-port`, on the loopback address.
pub fn metrics_port(values: &[String]) -> Converted {
    port(one(values), Ipv4Addr::LOCALHOST)
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

fn port(text: &str, ip: Ipv4Addr) -> Converted {
    match text.parse::<u16>() {
        Ok(0) => is("off"),
        Ok(port) => is(&SocketAddr::new(ip.into(), port)),
        Err(_) => Converted::Wrong(format!("{text:?} is no port from 0 to 65535")),
    }
}

/// kubeadm's names a file that is in kube-proxy's own pods only.
pub fn kubeconfig(values: &[String]) -> Converted {
    let path = one(values);
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if in_pod & !Path::new(path).exists() {
        return Converted::Nothing(format!(
            "there is no {path} in this pod; its service account is used"
        ));
    }
    is(path)
}

/// `--master` is one more address to try.
pub fn server(values: &[String]) -> Converted {
    let text = one(values);
    let uri: Option<Uri> = text.parse().ok();
    let found = uri.as_ref().and_then(|uri| {
        let host = uri.host()?;
        let standard = if uri.scheme_str() == Some("https") {
            443
        } else {
            80
        };
        Some(format!("{host}:{}", uri.port_u16().unwrap_or(standard)))
    });
    match found {
        Some(address) => is(&address),
        None => Converted::Wrong(format!(
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
        assert_eq!(of(health_port, "0"), is("off"));
        assert_eq!(of(metrics_port, "9"), is("127.0.0.1:9"));
        for bad in ["host:1", "1.2.3", ":x", "1.2.3.4:70000"] {
            assert!(
                matches!(of(health_address, bad), Converted::Wrong(_)),
                "{bad}"
            );
        }
        assert!(matches!(of(health_port, "-1"), Converted::Wrong(_)));
    }

    #[test]
    fn servers_have_a_port() {
        assert_eq!(of(server, "https://192.0.2.1:6443"), is("192.0.2.1:6443"));
        assert_eq!(of(server, "https://api.example"), is("api.example:443"));
        assert_eq!(of(server, "http://[::1]/x"), is("[::1]:80"));
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
}
