//! The media type that a client prefers, by its `Accept` header (RFC 9110, 12.5.1).

use http::HeaderMap;
use http::header::ACCEPT;

/// Returns whether the client prefers plain text to JSON, which is the default.
pub(super) fn prefers_text(headers: &HeaderMap) -> bool {
    let sent = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<_> = sent.flat_map(|value| value.split(',')).map(range).collect();
    quality(&ranges, "text/plain") > quality(&ranges, "application/json")
}

/// Parses a media range and its weight.
fn range(text: &str) -> (String, f32) {
    let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
    let media = parts.next().unwrap_or_default();
    let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
    (media, weight.unwrap_or(1.0))
}

/// Returns the weight of a media type: that of the most specific range that matches it.
fn quality(ranges: &[(String, f32)], media: &str) -> f32 {
    let any_of_its_type = format!("{}/*", media.split('/').next().unwrap_or_default());
    let closest = [media, &any_of_its_type, "*/*"]
        .into_iter()
        .find_map(|range| ranges.iter().find(|(other, _)| other == range));
    closest.map_or(0.0, |(_, weight)| *weight)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn text_is_preferred_only_if_its_weight_exceeds_that_of_json() {
        for (accept, expected) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["application/json"], false),
            (&["image/png"], false),
            (&["text/plain"], true),
            (&["Text/Plain; charset=utf-8"], true),
            (&["text/*"], true),
            (&["text/plain, application/json"], false),
            (&["text/plain, */*;q=0.1"], true),
            (&["text/plain;q=0.5, application/json;q=0.4"], true),
            (&["text/plain; q=0.4, application/json; q=0.5"], false),
            (&["*/*, text/plain;q=0"], false),
            (&["application/json;q=0, */*"], true),
            (&["application/json;q=0.2", "text/plain"], true),
        ] {
            let headers = accept.iter().map(|value| (ACCEPT, HeaderValue::from_static(value)));
            assert_eq!(prefers_text(&headers.collect()), expected, "{accept:?}");
        }
    }
}
