//! Encodes which records beyond a committed offset are finished, as text for the offset's metadata.
//!
//! A group commits one offset per partition: everything below it is finished. Records beyond it finish in any order,
//! and the next owner skips those that the metadata lists. There are two forms, each after a tag with its version:
//!
//! - `tl1r`: lengths of runs from the committed offset on, unfinished and finished in turn, each in digits of five
//!   bits, the lowest first; the sixth bit says that another digit follows.
//! - `tl1b`: one bit per record from the committed offset on, set if the record is finished; six bits per character,
//!   the first record in the lowest bit.
//!
//! The form with bits is written only if the form with runs does not fit. If neither fits, the form with runs is
//! written without the highest offsets.
//!
//! A digit is a character of the URL-safe base64 alphabet. A reader ignores a text that it does not know: the records
//! in it are then redelivered.

use std::collections::VecDeque;
use std::ops::Range;

/// Characters of metadata that a broker accepts by default (`offset.metadata.max.bytes` is 4096), less a margin.
pub(crate) const MOST: usize = 4000;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const RUNS: &str = "tl1r";
const BITS: &str = "tl1b";
const BITS_A_CHARACTER: usize = 6;

/// The maximum number of records that the form with bits covers: six for each character but the tag's.
const MOST_BITS: i64 = 23_976;
/// With no more unfinished records than this, the form with runs can express any order of finishing, over
/// [`LONGEST`] records: a run takes one character up to 31 records, two up to 1,023, three up to 32,767.
const FEW: usize = 900;
/// The maximum number of records between the committed offset and the newest finished one, in any form.
const LONGEST: i64 = 1 << 20;

/// Returns whether the finished records can be encoded if `unfinished` of all `span` records are not finished.
pub(crate) fn fits(span: i64, unfinished: usize) -> bool {
    span <= MOST_BITS || (span <= LONGEST && unfinished <= FEW)
}

/// Offsets of finished records: ranges in ascending order that do not overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Finished(VecDeque<Range<i64>>);

impl Finished {
    /// Adds a range, which must lie after all others.
    pub(crate) fn push(&mut self, range: Range<i64>) {
        match self.0.back_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.push_back(range),
        }
    }

    /// Adds the ranges of `others` from this offset on, which must lie after all ranges here.
    pub(crate) fn extend_from(&mut self, offset: i64, others: &Self) {
        others.0.iter().for_each(|range| self.push(range.start.max(offset)..range.end));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of offsets from this one on.
    pub(crate) fn count_from(&self, offset: i64) -> u64 {
        let count = |range: &Range<i64>| u64::try_from(range.end - range.start.max(offset)).unwrap_or(0);
        self.0.iter().map(count).sum()
    }

    /// Forgets all offsets below this one, and returns whether this one is included.
    pub(crate) fn advance_to(&mut self, offset: i64) -> bool {
        while self.0.front().is_some_and(|range| range.end <= offset) {
            self.0.pop_front();
        }
        self.0.front().is_some_and(|range| range.contains(&offset))
    }

    /// Encodes the offsets, relative to the committed offset, in up to `most` characters. If they do not fit, the
    /// highest offsets are left out.
    pub(crate) fn encode(&self, committed: i64, most: usize) -> String {
        if self.is_empty() {
            return String::new();
        }
        let (runs, is_complete) = self.runs(committed, most);
        if is_complete {
            return runs;
        }
        self.bits(committed, most).unwrap_or(runs)
    }

    fn runs(&self, committed: i64, most: usize) -> (String, bool) {
        let mut text = RUNS.to_owned();
        let mut at = committed;
        for range in &self.0 {
            let kept = text.len();
            push_number(&mut text, range.start - at);
            push_number(&mut text, range.end - range.start);
            if text.len() > most {
                text.truncate(if kept == RUNS.len() { 0 } else { kept });
                return (text, false);
            }
            at = range.end;
        }
        (text, true)
    }

    fn bits(&self, committed: i64, most: usize) -> Option<String> {
        let span = usize::try_from(self.0.back()?.end - committed).ok()?;
        let mut digits = vec![0_u8; span.div_ceil(BITS_A_CHARACTER)];
        if BITS.len() + digits.len() > most {
            return None;
        }
        for offset in self.0.iter().cloned().flatten() {
            let index = usize::try_from(offset - committed).ok()?;
            digits[index / BITS_A_CHARACTER] |= 1 << (index % BITS_A_CHARACTER);
        }
        let digits = digits.into_iter().map(|digit| char::from(ALPHABET[usize::from(digit)]));
        Some(BITS.chars().chain(digits).collect())
    }

    /// Decodes a text that [`Finished::encode`] has written for this committed offset; returns `None` for any other
    /// text.
    pub(crate) fn decode(committed: i64, text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        if let Some(text) = text.strip_prefix(RUNS) {
            Self::from_runs(committed, text)
        } else {
            Self::from_bits(committed, text.strip_prefix(BITS)?)
        }
    }

    fn from_runs(committed: i64, text: &str) -> Option<Self> {
        let mut digits = text.bytes();
        let (mut finished, mut at) = (Self::default(), committed);
        while digits.len() > 0 {
            let start = at.checked_add(number(&mut digits)?)?;
            at = start.checked_add(number(&mut digits)?)?;
            finished.push(start..at);
        }
        Some(finished)
    }

    fn from_bits(committed: i64, text: &str) -> Option<Self> {
        let mut finished = Self::default();
        let mut at = committed;
        for byte in text.bytes() {
            let digit = digit(byte)?;
            for bit in 0..BITS_A_CHARACTER {
                let next = at.checked_add(1)?;
                if digit & (1 << bit) != 0 {
                    finished.push(at..next);
                }
                at = next;
            }
        }
        Some(finished)
    }
}

fn push_number(text: &mut String, number: i64) {
    // Ranges ascend from the committed offset on, so no number is negative.
    let mut left = number.unsigned_abs();
    loop {
        let low = usize::try_from(left % 32).unwrap_or(0);
        left /= 32;
        text.push(char::from(ALPHABET[if left == 0 { low } else { low + 32 }]));
        if left == 0 {
            return;
        }
    }
}

fn number(digits: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let mut number = 0_i64;
    for place in 0.. {
        let digit = digit(digits.next()?)?;
        let part = i64::from(digit % 32).checked_mul(32_i64.checked_pow(place)?)?;
        number = number.checked_add(part)?;
        if digit < 32 {
            break;
        }
    }
    Some(number)
}

fn digit(byte: u8) -> Option<u8> {
    let index = ALPHABET.iter().position(|digit| *digit == byte)?;
    u8::try_from(index).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(offsets: impl IntoIterator<Item = i64>) -> Finished {
        let mut finished = Finished::default();
        offsets.into_iter().for_each(|offset| finished.push(offset..offset + 1));
        finished
    }

    #[test]
    fn a_bitmap_fits_into_the_metadata_limit_of_a_broker() {
        assert_eq!(i64::try_from((MOST - BITS.len()) * BITS_A_CHARACTER), Ok(MOST_BITS));
    }

    #[test]
    fn a_few_runs_take_a_few_characters() {
        let finished = of((1001..51_000).chain(51_010..51_020));
        let text = finished.encode(1000, MOST);
        assert_eq!(text, "tl1rBv6wBKK");
        assert_eq!(Finished::decode(1000, &text), Some(finished));
        assert_eq!(Finished::default().encode(7, MOST), "");
    }

    #[test]
    fn many_short_runs_are_written_as_bits() {
        // Three characters a run, if they were runs.
        let finished = of((0..MOST_BITS).filter(|offset| offset % 34 != 0));
        let dense = of((0..MOST_BITS).filter(|offset| offset % 3 != 0));
        for finished in [finished, dense] {
            let text = finished.encode(0, MOST);
            assert!(text.len() <= MOST);
            assert_eq!(Finished::decode(0, &text), Some(finished));
        }
    }

    #[test]
    fn the_latest_records_are_omitted_if_not_all_fit() {
        let finished = of((0..100_000).filter(|offset| offset % 2 == 1));
        let kept = Finished::decode(0, &finished.encode(0, MOST)).unwrap();
        let kept: Vec<_> = kept.0.into_iter().flatten().collect();
        assert!(kept.len() > 1000, "{}", kept.len());
        assert_eq!(kept, (0..100_000).filter(|offset| offset % 2 == 1).take(kept.len()).collect::<Vec<_>>());
        assert_eq!(of([5]).encode(0, 4), "", "not even one");
    }

    #[test]
    fn foreign_metadata_is_ignored() {
        for text in
            ["x", "tl1", "tl2rBB", "tl1r*", "tl1rB", "tl1rB_", "tl1bé", "tl1r______________B", "{\"a\":1}"]
        {
            assert_eq!(Finished::decode(0, text), None, "{text}");
        }
        assert_eq!(Finished::decode(i64::MAX, "tl1rBB"), None);
        assert_eq!(Finished::decode(i64::MAX, "tl1bB"), None);
    }

    proptest! {
        #[test]
        fn everything_that_fits_is_encoded(
            unfinished in prop::collection::btree_set(0_i64..30_000, 0..3000),
            span in 1_i64..30_000,
            scale in prop::sample::select(vec![1_i64, 7, 34]),
        ) {
            let (span, unfinished): (i64, BTreeSet<i64>) =
                (span * scale, unfinished.iter().map(|offset| offset * scale).filter(|o| *o < span * scale).collect());
            prop_assume!(fits(span, unfinished.len()));
            let mut finished = Finished::default();
            let starts = std::iter::once(0).chain(unfinished.iter().map(|offset| offset + 1));
            starts.zip(unfinished.iter().copied().chain([span])).for_each(|(start, end)| finished.push(start..end));
            let text = finished.encode(0, MOST);
            prop_assert!(text.len() <= MOST);
            prop_assert_eq!(Finished::decode(0, &text), Some(finished));
        }

        #[test]
        fn any_text_can_be_decoded(text in "(tl1[rb])?[A-Za-z0-9_*-]{0,40}", committed in 0_i64..i64::MAX) {
            if let Some(finished) = Finished::decode(committed, &text) {
                prop_assert!(finished.0.iter().all(|range| range.start >= committed && !range.is_empty()));
            }
        }
    }
}
