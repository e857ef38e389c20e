use url::Url;

use crate::Links;
use throughline_config::{Findings, Path};

pub(super) fn check(links: &Links, findings: &mut Findings) {
    for (key, link, placeholder) in
        [("trace", &links.trace, Links::TRACE_ID), ("request", &links.request, Links::REQUEST_ID)]
    {
        if link.as_ref().is_some_and(|link| !is_link(link, placeholder)) {
            let message = format!(
                "expected an http or https URL that contains `{placeholder}`, such as \
                 `https://grafana.example.com/{key}/{placeholder}`"
            );
            findings.add(Path::of(&["links", key]), message);
        }
    }
}

fn is_link(link: &str, placeholder: &str) -> bool {
    let filled = link.replace(placeholder, "0");
    filled != link && Url::parse(&filled).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}
