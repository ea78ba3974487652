//! All metrics as one text.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::datapath::Datapath;
use super::process::Process;
use super::text::Format;
use super::{Metrics, text};

/// What a scrape is answered from.
#[derive(Debug)]
pub struct Exporter {
    registry: Registry,
}

impl Exporter {
    /// Of these metrics; `each_service`: with the traffic of each service port.
    pub fn new(metrics: &Metrics, each_service: bool) -> Self {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let build = Labelled::<[(&str, &str); 1], Gauge>::default();
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        build.get_or_create(&version).set(1);
        registry.register("tulle_build_info", "1; its labels say which build", build);
        let datapath = Datapath::new(metrics.clone(), each_service);
        registry.register_collector(Box::new(datapath));
        registry.register_collector(Box::new(Process::new()));
        Self { registry }
    }

    /// The text of a scrape. Reads maps: blocks shortly.
    ///
    /// # Errors
    ///
    /// A metric that has no text.
    pub fn text(&self, format: Format) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Prometheus => text::prometheus(&text),
        })
    }
}
