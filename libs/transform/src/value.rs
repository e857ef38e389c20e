//! The values that filters work with: jaq's own, with a step of the [meter] for each use.
//!
//! jaq shares copies of arrays and objects by reference counting. So a small value can, when written out or compared,
//! become larger than all memory. All full traversals of a value are therefore made here, step by step.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use bytes::Bytes;
use jaq_core::Exn;
use jaq_core::box_iter::{BoxIter, box_once};
use jaq_core::path::Opt;
use jaq_core::val::Range;
use jaq_json::{Map, Num, Val};

use crate::error::{Excerpt, Runaway};
use crate::meter;

/// Maximum bytes of a string that a filter builds; also the maximum by which an output may be larger than its body.
pub(crate) const MOST_TEXT: usize = 16 * meter::MIB;
/// Maximum nesting depth of a value that is written or traversed, as in jq.
const DEEPEST: usize = 10_000;
/// The memory that an item of an array takes, and the minimum for an entry of an object, in bytes.
const ITEM: usize = size_of::<Val>();
const ENTRY: usize = 64;

/// A metered jaq value.
#[derive(Debug, Clone, Default)]
pub(crate) struct Value(pub(crate) Val);

pub(crate) type Error = jaq_core::Error<Value>;
pub(crate) type ValR<T = Value> = Result<T, Error>;
type ValX<'a> = Result<Value, Exn<'a, Value>>;

impl Value {
    pub(crate) fn text(text: impl Into<Bytes>) -> Self {
        Self(Val::utf8_str(text))
    }

    /// Returns the bytes that a copy of the value takes, without the parts that it shares with the original.
    pub(crate) fn size(&self) -> usize {
        match &self.0 {
            Val::TStr(text) | Val::BStr(text) => text.len(),
            Val::Arr(items) => items.len() * ITEM,
            Val::Obj(entries) => entries.len() * ENTRY,
            Val::Null | Val::Bool(_) | Val::Num(_) => 0,
        }
    }
}

pub(crate) fn is_text(value: &Val) -> bool {
    matches!(value, Val::TStr(_))
}

/// Returns the content of a reference that may be shared.
fn unshared<T: Clone>(shared: Rc<T>, size: usize) -> T {
    meter::step();
    if Rc::strong_count(&shared) > 1 {
        meter::reserve(size);
    }
    Rc::unwrap_or_clone(shared)
}

/// Traverses a value completely and returns the minimum number of bytes of its written form.
pub(crate) fn walk(value: &Val) -> usize {
    walk_at(value, 0)
}

fn walk_at(value: &Val, depth: usize) -> usize {
    meter::step();
    if depth > DEEPEST {
        meter::end(Runaway::Nesting(DEEPEST));
    }
    let within: usize = match value {
        Val::TStr(text) | Val::BStr(text) => text.len(),
        Val::Arr(items) => items.iter().map(|item| walk_at(item, depth + 1)).sum(),
        Val::Obj(entries) => entries
            .iter()
            .map(|(key, value)| walk_at(key, depth + 1).saturating_add(walk_at(value, depth + 1)))
            .fold(0, usize::saturating_add),
        Val::Null | Val::Bool(_) | Val::Num(_) => 0,
    };
    within.saturating_add(2)
}

/// Converts an error of jaq's values; quoted values are truncated.
pub(crate) fn error_of(error: jaq_core::Error<Val>) -> Error {
    let words = Excerpt::of(&error);
    // An error value is printed in quotes; other messages begin with a word.
    if words.starts_with('"') { Error::new(Value(error.into_val())) } else { Error::str(words) }
}

fn no_key(key: &Value) -> Error {
    Error::str(format_args!("the key of an object is a text, not {key}"))
}

/// The printed value is truncated: jaq prints whole values in errors that a filter catches.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Excerpt::of(&self.0))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

impl From<isize> for Value {
    fn from(value: isize) -> Self {
        Self(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self(value.into())
    }
}

impl From<Range<Self>> for Value {
    fn from(Range { start, end }: Range<Self>) -> Self {
        let within = |bound: Option<Self>| bound.map(|value| value.0);
        Self(Val::from(within(start)..within(end)))
    }
}

impl FromIterator<Self> for Value {
    fn from_iter<T: IntoIterator<Item = Self>>(items: T) -> Self {
        let metered = |item: Self| {
            meter::step();
            item.0
        };
        Self(items.into_iter().map(metered).collect())
    }
}

impl jaq_core::ValT for Value {
    fn from_num(number: &str) -> ValR {
        Val::from_num(number).map(Self).map_err(error_of)
    }

    /// Unlike jaq's, it accepts only string keys, as in JSON: hashing any other key can take unbounded time.
    fn from_map<I: IntoIterator<Item = (Self, Self)>>(entries: I) -> ValR {
        meter::step();
        let entry = |(key, value): (Self, Self)| {
            if is_text(&key.0) { Ok((key.0, value.0)) } else { Err(no_key(&key)) }
        };
        Ok(Self(Val::obj(entries.into_iter().map(entry).collect::<ValR<Map>>()?)))
    }

    fn key_values(self) -> BoxIter<'static, ValR<(Self, Self)>> {
        let size = self.size();
        match self.0 {
            Val::Arr(items) => {
                let numbered = unshared(items, size).into_iter().enumerate();
                Box::new(numbered.map(|(index, item)| Ok((Self::from(index), Self(item)))))
            }
            Val::Obj(entries) => {
                Box::new(unshared(entries, size).into_iter().map(|(key, value)| Ok((Self(key), Self(value)))))
            }
            other => box_once(Err(Error::typ(Self(other), "iterable (array or object)"))),
        }
    }

    fn values(self) -> Box<dyn Iterator<Item = ValR>> {
        let size = self.size();
        match self.0 {
            Val::Arr(items) => Box::new(unshared(items, size).into_iter().map(|item| Ok(Self(item)))),
            Val::Obj(entries) => {
                Box::new(unshared(entries, size).into_iter().map(|(_, value)| Ok(Self(value))))
            }
            other => box_once(Err(Error::typ(Self(other), "iterable (array or object)"))),
        }
    }

    fn index(self, index: &Self) -> ValR {
        meter::step();
        match (&self.0, &index.0) {
            (Val::Arr(items), Val::Arr(wanted)) => Ok(crate::functions::positions(items, wanted)),
            (Val::Obj(_), key) if !is_text(key) => Ok(Self(Val::Null)),
            _ => self.0.index(&index.0).map(Self).map_err(error_of),
        }
    }

    fn range(self, range: Range<&Self>) -> ValR {
        meter::step();
        meter::reserve(self.size());
        self.0.range(within(&range)).map(Self).map_err(error_of)
    }

    fn map_values<'a, I: Iterator<Item = ValX<'a>>>(self, opt: Opt, f: impl Fn(Self) -> I) -> ValX<'a> {
        let aside = Aside::default();
        let updated = self.0.map_values(opt, |value| aside.hand_over(f(Self(value))));
        aside.take_back(updated)
    }

    fn map_index<'a, I: Iterator<Item = ValX<'a>>>(
        self,
        index: &Self,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a> {
        meter::reserve(self.size());
        if matches!(self.0, Val::Obj(_)) && !is_text(&index.0) {
            return opt.fail(self, |_| Exn::from(no_key(index)));
        }
        let aside = Aside::default();
        let updated = self.0.map_index(&index.0, opt, |value| aside.hand_over(f(Self(value))));
        aside.take_back(updated)
    }

    fn map_range<'a, I: Iterator<Item = ValX<'a>>>(
        self,
        range: Range<&Self>,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a> {
        meter::reserve(self.size());
        let aside = Aside::default();
        let updated = self.0.map_range(within(&range), opt, |value| aside.hand_over(f(Self(value))));
        aside.take_back(updated)
    }

    fn as_bool(&self) -> bool {
        self.0.as_bool()
    }

    fn into_string(self) -> Self {
        meter::reserve(walk(&self.0));
        Self(self.0.into_string())
    }
}

fn within<'a>(range: &Range<&'a Value>) -> Range<&'a Val> {
    range.start.map(|value| &value.0)..range.end.map(|value| &value.0)
}

/// Keeps a filter's exception while jaq updates its own values: their exceptions have another type, so jaq passes a
/// placeholder on instead.
#[derive(Default)]
struct Aside<'a>(RefCell<Option<Exn<'a, Value>>>);

impl<'a> Aside<'a> {
    fn hand_over(
        &self,
        outputs: impl Iterator<Item = ValX<'a>>,
    ) -> impl Iterator<Item = jaq_core::ValX<'a, Val>> {
        outputs.map(|output| {
            meter::step();
            output.map(|value| value.0).map_err(|exception| {
                self.0.replace(Some(exception));
                Exn::from(jaq_core::Error::new(Val::Null))
            })
        })
    }

    fn take_back(self, updated: jaq_core::ValX<'a, Val>) -> ValX<'a> {
        updated.map(Value).map_err(|own| match (self.0.into_inner(), own.get_err()) {
            (Some(exception), _) => exception,
            (None, Ok(error)) => Exn::from(error_of(error)),
            (None, Err(_)) => Exn::from(Error::str("it ended unexpectedly")),
        })
    }
}

impl jaq_std::ValT for Value {
    fn into_seq<S: FromIterator<Self>>(self) -> Result<S, Self> {
        let size = self.size();
        match self.0 {
            Val::Arr(items) => Ok(unshared(items, size).into_iter().map(Self).collect()),
            other => Err(Self(other)),
        }
    }

    fn is_int(&self) -> bool {
        matches!(self.0, Val::Num(Num::Int(_) | Num::BigInt(_)))
    }

    fn as_isize(&self) -> Option<isize> {
        self.0.as_isize()
    }

    fn as_f64(&self) -> Option<f64> {
        self.0.as_f64()
    }

    fn is_utf8_str(&self) -> bool {
        is_text(&self.0)
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        self.0.as_bytes()
    }

    fn as_sub_str(&self, part: &[u8]) -> Self {
        Self(self.0.as_sub_str(part))
    }

    fn from_utf8_bytes(text: impl AsRef<[u8]> + Send + 'static) -> Self {
        // The text is allocated already, but the next step may multiply its size.
        meter::reserve(text.as_ref().len());
        Self(Val::from_utf8_bytes(text))
    }
}
