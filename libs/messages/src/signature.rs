use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::headers::{Headers, find, name, put};

/// Part of every signed text. Another form of signing needs another value.
const DOMAIN: &[u8] = b"throughline/1";
/// Prefix of the header's value.
const ALGORITHM: &str = "sha256=";

/// The kind of a record. It is part of the signature, so that a record of one kind cannot pass for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request, on its route's topic.
    Request,
    /// A delivery to retry.
    Retry,
    /// The outcome of an attempt.
    Outcome,
    /// A foreign record that dispatch hands to ingest.
    Adoption,
}

/// The keys that authenticate our records. A signature is an HMAC-SHA-256 over the kind of the record, its headers
/// `ce_*`, `throughline-*` and `content-type`, and its value. Trace headers are not covered, so that intermediaries can
/// continue the trace.
///
/// A signature does not expire, and does not name its topic: a copy of a record is as authentic as the record.
#[derive(Clone)]
pub struct Keys {
    signing: Hmac<Sha256>,
    accepted: Option<Hmac<Sha256>>,
}

impl Keys {
    /// Returns keys that sign records with `signing`. Signatures made with `accepted` are also valid, so that keys can
    /// be rotated.
    #[must_use]
    pub fn new(signing: &str, accepted: Option<&str>) -> Self {
        Self { signing: keyed(signing), accepted: accepted.map(keyed) }
    }

    /// Signs a record by appending the header.
    pub fn sign(&self, kind: Kind, headers: &mut Headers, value: &[u8]) {
        let tag = over(&self.signing, kind, headers, value).finalize().into_bytes();
        let digits = tag.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        let digits = digits.filter_map(|digit| char::from_digit(digit.into(), 16));
        put(headers, name::SIGNATURE, ALGORITHM.chars().chain(digits).collect::<String>());
    }

    /// Returns whether a record carries a signature made with one of the keys. The comparison takes the same time for
    /// every signature.
    #[must_use]
    pub fn have_signed(&self, kind: Kind, headers: &[(String, Bytes)], value: &[u8]) -> bool {
        let Some(tag) = find(headers, name::SIGNATURE).and_then(|text| tag(text)) else { return false };
        let by = |key| over(key, kind, headers, value).verify_slice(&tag).is_ok();
        by(&self.signing) || self.accepted.as_ref().is_some_and(by)
    }
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
fn keyed(key: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(key.as_bytes()).expect("any key")
}

/// Returns the HMAC over a record. Each part is preceded by its length, so that two different records never give the
/// same input.
fn over(key: &Hmac<Sha256>, kind: Kind, headers: &[(String, Bytes)], value: &[u8]) -> Hmac<Sha256> {
    let mut mac = key.clone();
    let mut part = |part: &[u8]| {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    };
    part(DOMAIN);
    part(match kind {
        Kind::Request => b"request",
        Kind::Retry => b"retry",
        Kind::Outcome => b"outcome",
        Kind::Adoption => b"adoption",
    });
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if is_covered(&name) {
            part(name.as_bytes());
            part(value);
        }
    }
    // Ends the headers: no header has an empty name.
    part(&[]);
    part(value);
    mac
}

/// Returns whether a header is signed. The rule uses prefixes, so that a version that does not know a header of a later
/// version still verifies it.
fn is_covered(name: &str) -> bool {
    name != name::SIGNATURE
        && (name.starts_with("ce_") || name.starts_with("throughline-") || name == name::CONTENT_TYPE)
}

fn tag(text: &[u8]) -> Option<[u8; 32]> {
    let digits = std::str::from_utf8(text).ok()?.strip_prefix(ALGORITHM)?.as_bytes();
    let mut tag = [0; 32];
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    if pairs.len() != tag.len() {
        return None;
    }
    for (byte, pair) in tag.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> Headers {
        let pairs =
            [("ce_id", "42"), ("ce_type", "one"), ("content-type", "a/b"), ("throughline-attempt", "2")];
        pairs.map(|(name, value)| (name.to_owned(), Bytes::from_static(value.as_bytes()))).to_vec()
    }

    fn signed(keys: &Keys) -> Headers {
        let mut headers = headers();
        keys.sign(Kind::Request, &mut headers, b"{}");
        headers
    }

    #[test]
    fn the_format_of_a_signature_is_stable() {
        let headers = signed(&Keys::new("key", None));
        assert_eq!(headers.last().unwrap().0, "throughline-signature");
        // Computed by Python's `hmac`.
        let tag = "54150669941a2638dbaee9172ad3841fb7978bcfecfe229b2fb2a956d5fbc2cd";
        assert_eq!(headers.last().unwrap().1, format!("sha256={tag}"));
    }

    #[test]
    fn a_signed_record_is_accepted_and_rejected_after_any_change() {
        let keys = Keys::new("key", None);
        let headers = signed(&keys);
        assert!(keys.have_signed(Kind::Request, &headers, b"{}"));
        assert!(!keys.have_signed(Kind::Retry, &headers, b"{}"));
        assert!(!keys.have_signed(Kind::Request, &headers, b"{ }"));
        for at in 0..headers.len() {
            let (mut without, mut changed, mut doubled) = (headers.clone(), headers.clone(), headers.clone());
            without.remove(at);
            changed[at].1 = Bytes::from_static(b"other");
            doubled.push((headers[at].0.to_uppercase(), Bytes::from_static(b"other")));
            for forged in [without, changed, doubled] {
                assert!(!keys.have_signed(Kind::Request, &forged, b"{}"), "{forged:?}");
            }
        }
        let moved =
            [(headers[0].0.clone(), headers[1].1.clone()), (headers[1].0.clone(), headers[0].1.clone())];
        let moved = [&moved[..], &headers[2..]].concat();
        assert!(!keys.have_signed(Kind::Request, &moved, b"{}"));
    }

    #[test]
    fn trace_headers_may_be_changed_on_the_way() {
        let keys = Keys::new("key", None);
        let mut headers = signed(&keys);
        put(&mut headers, name::TRACEPARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert!(keys.have_signed(Kind::Request, &headers, b"{}"));
    }

    #[test]
    fn a_key_is_rotated_in_three_steps_without_a_gap() {
        let steps = [
            Keys::new("old", None),
            Keys::new("old", Some("new")),
            Keys::new("new", Some("old")),
            Keys::new("new", None),
        ];
        for neighbours in steps.windows(2) {
            for (signs, checks) in [(0, 1), (1, 0)] {
                let headers = signed(&neighbours[signs]);
                assert!(neighbours[checks].have_signed(Kind::Request, &headers, b"{}"));
            }
        }
        assert!(!steps[3].have_signed(Kind::Request, &signed(&steps[0]), b"{}"));
    }

    #[test]
    fn an_invalid_signature_is_rejected() {
        let keys = Keys::new("key", None);
        let short = format!("sha256={}", "0".repeat(62));
        for text in ["", "sha256=", &short, &format!("{short}0"), &format!("{short}0g"), &"0".repeat(64)] {
            let mut headers = headers();
            put(&mut headers, name::SIGNATURE, text.to_owned());
            assert!(!keys.have_signed(Kind::Request, &headers, b"{}"), "{text}");
        }
    }
}
