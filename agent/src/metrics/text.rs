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

/// `OpenMetrics` as the older text: there a counter is called what its samples are called, bounds of
/// buckets are written as Go does it, by which queries of kube-proxy's buckets go (`le="2"`), and the
/// end is the end.
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
            None => match whole_bound(line) {
                Some((before, after)) => {
                    text.push_str(before);
                    text.push_str(after);
                }
                None => text.push_str(line),
            },
        }
        text.push('\n');
    }
    text
}

/// A bucket whose bound is a whole number: what is before and behind its `.0`.
fn whole_bound(line: &str) -> Option<(&str, &str)> {
    let (name, labels) = line.split_once('{')?;
    if !name.ends_with("_bucket") {
        return None;
    }
    let begins = |at: &usize| *at == 0 || labels.as_bytes().get(at - 1) == Some(&b',');
    let (at, label) = labels.match_indices("le=\"").find(|(at, _)| begins(at))?;
    let bound = at + label.len();
    let end = bound + labels[bound..].find('"')?;
    labels[bound..end].strip_suffix(".0")?;
    let end = name.len() + 1 + end;
    Some((&line[..end - 2], &line[end..]))
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
    fn bounds_of_buckets_are_written_as_kube_proxy_does() {
        for (open, old) in [
            ("a_bucket{le=\"2.0\"} 1", "a_bucket{le=\"2\"} 1"),
            (
                "a_bucket{file=\"1.0\",le=\"60.0\"} 1.0",
                "a_bucket{file=\"1.0\",le=\"60\"} 1.0",
            ),
            ("a_bucket{le=\"0.25\"} 1", "a_bucket{le=\"0.25\"} 1"),
            ("a_bucket{le=\"+Inf\"} 1", "a_bucket{le=\"+Inf\"} 1"),
            ("a_bucket{role=\"1.0\"} 1", "a_bucket{role=\"1.0\"} 1"),
            ("a_sum{le=\"2.0\"} 1", "a_sum{le=\"2.0\"} 1"),
        ] {
            assert_eq!(prometheus(&format!("{open}\n")), format!("{old}\n"));
        }
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        assert_eq!(Format::accepted(Some(accept)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::accepted(None), Format::Prometheus);
    }
}
