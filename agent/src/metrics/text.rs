//! The two texts that scrapers read (pure).

/// A form of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Prometheus' own, version 0.0.4: what `curl` and old scrapers get.
    Prometheus,
}

impl Format {
    /// What a client that sends this `Accept` can read.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// The `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// `OpenMetrics` as the older text: there a counter is called what its samples are called, and
/// the end is the end.
pub fn prometheus(openmetrics: &str) -> String {
    let counter = |line: &str| {
        let name = line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?;
        Some(name.to_owned())
    };
    let mut text = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let counted = match line.strip_prefix("# HELP ") {
            // The type comes after the help.
            Some(_) => lines.peek().and_then(|next| counter(next)),
            None => counter(line),
        };
        match counted {
            Some(name) => text.push_str(&line.replacen(&name, &format!("{name}_total"), 1)),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_called_what_their_samples_are() {
        let open = "# HELP a_b An a_b.\n# TYPE a_b counter\na_b_total{x=\"1\"} 2\n\
                    # HELP g_total G.\n# TYPE g_total gauge\ng_total 1\n# EOF\n";
        let old = "# HELP a_b_total An a_b.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 2\n\
                   # HELP g_total G.\n# TYPE g_total gauge\ng_total 1\n";
        assert_eq!(prometheus(open), old);
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        assert_eq!(Format::accepted(Some(accept)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::accepted(None), Format::Prometheus);
    }
}
