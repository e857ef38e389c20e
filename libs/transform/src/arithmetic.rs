//! Arithmetic and comparison of values: as in jaq, but bounded.

use std::cmp::Ordering;
use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

use jaq_json::{Map, Num, Val};
use jaq_std::ValT as _;

use crate::json::MOST_DIGITS;
use crate::meter;
use crate::value::{Error, MOST_TEXT, ValR, Value, error_of, walk};

/// Maximum bits of a computed integer: computing with it and writing it take time quadratic in its bits. A digit has
/// 3.33 bits.
const MOST_BITS: u64 = MOST_DIGITS as u64 * 10 / 3;

fn calculated(result: Result<Val, jaq_core::Error<Val>>) -> ValR {
    match result {
        Ok(Val::Num(Num::BigInt(integer))) if integer.bits() > MOST_BITS => {
            Err(Error::str(format_args!("a number cannot have more than {MOST_DIGITS} digits")))
        }
        Ok(value) => Ok(Value(value)),
        Err(error) => Err(error_of(error)),
    }
}

impl Add for Value {
    type Output = ValR;

    fn add(self, other: Self) -> ValR {
        meter::step();
        let size = self.size() + other.size();
        if size > MOST_TEXT && self.as_bytes().is_some() && other.as_bytes().is_some() {
            return Err(Error::str(format_args!("a string cannot have {size} bytes")));
        }
        meter::reserve(size);
        calculated(self.0 + other.0)
    }
}

impl Sub for Value {
    type Output = ValR;

    fn sub(self, other: Self) -> ValR {
        meter::step();
        if let (Val::Arr(_), Val::Arr(_)) = (&self.0, &other.0) {
            walk(&self.0);
            walk(&other.0);
        }
        calculated(self.0 - other.0)
    }
}

impl Mul for Value {
    type Output = ValR;

    /// A string times a number repeats the string, and the number may come from the body.
    fn mul(self, other: Self) -> ValR {
        meter::step();
        let (text, factor) = if self.as_bytes().is_some() { (&self, &other) } else { (&other, &self) };
        if let Some(text) = text.as_bytes()
            && factor.is_int()
        {
            // Integers beyond `isize` count as the largest `isize`.
            let times = factor.as_isize().unwrap_or(isize::MAX);
            let size = usize::try_from(times).unwrap_or(0).saturating_mul(text.len().max(1));
            if size > MOST_TEXT {
                return Err(Error::str(format_args!("a string cannot be repeated {times} times")));
            }
            meter::reserve(size);
        }
        if let (Val::Obj(_), Val::Obj(_)) = (&self.0, &other.0) {
            walk(&self.0);
            walk(&other.0);
        }
        calculated(self.0 * other.0)
    }
}

impl Div for Value {
    type Output = ValR;

    /// A string divided by a string is split at it.
    fn div(self, other: Self) -> ValR {
        meter::step();
        if let (Val::TStr(text), Val::TStr(separator)) = (&self.0, &other.0)
            && let (Ok(words), Ok(between)) = (str::from_utf8(text), str::from_utf8(separator))
        {
            let part = |part: &str| Self::text(text.slice_ref(part.as_bytes()));
            return Ok(match (words, between) {
                ("", _) => Self::from_iter([]),
                (_, "") => words.split_inclusive(|_| true).map(part).collect(),
                _ => words.split(between).map(part).collect(),
            });
        }
        // Each byte may become a part.
        meter::reserve(self.size().saturating_mul(48));
        calculated(self.0 / other.0)
    }
}

impl Rem for Value {
    type Output = ValR;

    fn rem(self, other: Self) -> ValR {
        meter::step();
        calculated(self.0 % other.0)
    }
}

impl Neg for Value {
    type Output = ValR;

    fn neg(self) -> ValR {
        meter::step();
        calculated(-self.0)
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.0, &other.0)
    }
}

pub(crate) fn equal(left: &Val, right: &Val) -> bool {
    meter::step();
    match (left, right) {
        (Val::Arr(left), Val::Arr(right)) => {
            left.len() == right.len() && left.iter().zip(&**right).all(|(left, right)| equal(left, right))
        }
        (Val::Obj(left), Val::Obj(right)) => {
            let has = |key: &Val, value: &Val| right.get(key).is_some_and(|other| equal(value, other));
            left.len() == right.len() && left.iter().all(|(key, value)| has(key, value))
        }
        _ => left == right,
    }
}

/// Compares arrays by their items, and objects by their sorted keys and then by the values of these keys.
pub(crate) fn compare(left: &Val, right: &Val) -> Ordering {
    meter::step();
    match (left, right) {
        (Val::Arr(left), Val::Arr(right)) => compare_all(left.iter(), right.iter()),
        (Val::Obj(left), Val::Obj(right)) if !left.is_empty() && !right.is_empty() => {
            let (left, right) = (in_order(left), in_order(right));
            let keys = compare_all(left.iter().map(|(key, _)| *key), right.iter().map(|(key, _)| *key));
            keys.then_with(|| {
                compare_all(left.iter().map(|(_, value)| *value), right.iter().map(|(_, value)| *value))
            })
        }
        _ => left.cmp(right),
    }
}

fn in_order(entries: &Map) -> Vec<(&Val, &Val)> {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_unstable_by(|(left, _), (right, _)| compare(left, right));
    entries
}

fn compare_all<'a>(
    mut left: impl ExactSizeIterator<Item = &'a Val>,
    mut right: impl ExactSizeIterator<Item = &'a Val>,
) -> Ordering {
    let lengths = left.len().cmp(&right.len());
    let pairs = std::iter::from_fn(|| Some((left.next()?, right.next()?)));
    pairs.map(|(left, right)| compare(left, right)).find(|order| order.is_ne()).unwrap_or(lengths)
}
