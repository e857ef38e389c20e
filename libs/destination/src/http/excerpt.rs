//! The beginning of a response's body, for operators.

/// Length of an excerpt in bytes: enough to see the problem, since it is stored with every attempt.
const LENGTH: usize = 1024;

/// Collects the beginning of a body that arrives in chunks.
#[derive(Default)]
pub(super) struct Excerpt(Vec<u8>);

impl Excerpt {
    /// Adds a chunk. It keeps one byte more than the excerpt's length, which shows whether the cut splits a
    /// character.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let budget = (LENGTH + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&piece[..piece.len().min(budget)]);
    }

    /// Returns the excerpt as text; `None` if the body is empty. Invalid UTF-8 is replaced, and so is NUL, which
    /// PostgreSQL's text cannot hold.
    pub(super) fn into_text(self) -> Option<String> {
        let bytes = &self.0[..cut(&self.0)];
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}"))
    }
}

/// Returns where to cut, so that no character is split.
fn cut(bytes: &[u8]) -> usize {
    if bytes.len() <= LENGTH {
        return bytes.len();
    }
    let continues = |at: usize| bytes[at] & 0b1100_0000 == 0b1000_0000;
    // A character has at most four bytes, so it begins no further back.
    (LENGTH - 3..=LENGTH).rev().find(|at| !continues(*at)).unwrap_or(LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(body: &[u8], piece: usize) -> Option<String> {
        let mut excerpt = Excerpt::default();
        body.chunks(piece).for_each(|piece| excerpt.push(piece));
        excerpt.into_text()
    }

    #[test]
    fn a_short_body_is_shown_whole_and_an_empty_one_not_at_all() {
        assert_eq!(excerpt(b"no such key", 4).as_deref(), Some("no such key"));
        assert_eq!(excerpt(b"", 4), None);
    }

    #[test]
    fn a_long_body_is_cut_between_characters() {
        for (lead, character) in
            [(1023, "é"), (1022, "€"), (1023, "€"), (1021, "🦀"), (1022, "🦀"), (1023, "🦀")]
        {
            let body = "x".repeat(lead) + &character.repeat(10);
            for piece in [1, 1000, 5000] {
                assert_eq!(excerpt(body.as_bytes(), piece).unwrap(), "x".repeat(lead), "{lead} {character}");
            }
        }
        assert_eq!(excerpt("é".repeat(1000).as_bytes(), 7).unwrap(), "é".repeat(512));
    }

    #[test]
    fn invalid_characters_are_replaced() {
        assert_eq!(excerpt(b"a\xff\0b", 9).unwrap(), "a\u{fffd}\u{fffd}b");
        assert_eq!(excerpt(&[0x80; 3000], 9).unwrap(), "\u{fffd}".repeat(1024));
    }
}
