//! Multiplication that a body cannot turn against the process.
//!
//! In jq a text times a number is the text so many times over. `.price * .quantity` would let whoever
//! sends a text as price and 10^18 as quantity ask for more memory than there is, which ends the
//! process, and ends it again whenever the request is taken up again. So all `*` of a filter become
//! calls of a function that looks first.

use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Def, Pattern, Term};
use jaq_core::native::{Fun, bome, run, v};
use jaq_core::ops::Math;
use jaq_core::path::{Part, Path};
use jaq_core::{Cv, Error};
use jaq_json::Val;
use jaq_std::ValT as _;

use crate::functions::Data;

/// Most bytes that a repeated text may have; as much as an output may be larger than its body.
const MOST_REPEATED: usize = 16 * 1024 * 1024;

/// No name that can be written in a filter.
const PRODUCT: &str = "!product";
const FACTOR: &str = "$!factor";

type Source<'s> = Term<&'s str>;

/// The function that stands for `*`.
pub(crate) fn product() -> Fun<Data> {
    run((PRODUCT, v(2), |mut cv: Cv<'_, Data>| {
        let right = cv.0.pop_var();
        let left = cv.0.pop_var();
        bome(multiply(left, right))
    }))
}

fn multiply(left: Val, right: Val) -> Result<Val, Error<Val>> {
    let (text, factor) = if left.as_bytes().is_some() { (&left, &right) } else { (&right, &left) };
    if let Some(text) = text.as_bytes()
        && factor.is_int()
    {
        // Integers beyond `isize` are as good as the largest one.
        let times = factor.as_isize().unwrap_or(isize::MAX);
        let size = usize::try_from(times).unwrap_or(0).saturating_mul(text.len().max(1));
        if size > MOST_REPEATED {
            return Err(Error::str(format_args!("a text cannot be repeated {times} times")));
        }
    }
    left * right
}

/// The same filter with guarded multiplication.
pub(crate) fn guard(term: Source<'_>) -> Source<'_> {
    match term {
        Term::BinOp(left, operator, right) => guard_operation(guard(*left), operator, guard(*right)),
        Term::Str(format, parts) => Term::Str(format, parts.into_iter().map(guard_part).collect()),
        Term::Arr(term) => Term::Arr(term.map(boxed)),
        Term::Obj(entries) => {
            Term::Obj(entries.into_iter().map(|(key, value)| (guard(key), value.map(guard))).collect())
        }
        Term::Neg(term) => Term::Neg(boxed(term)),
        Term::Label(label, term) => Term::Label(label, boxed(term)),
        Term::Fold(name, over, pattern, terms) => {
            Term::Fold(name, boxed(over), guard_pattern(pattern), all(terms))
        }
        Term::TryCatch(term, catch) => Term::TryCatch(boxed(term), catch.map(boxed)),
        Term::IfThenElse(branches, otherwise) => Term::IfThenElse(
            branches.into_iter().map(|(condition, then)| (guard(condition), guard(then))).collect(),
            otherwise.map(boxed),
        ),
        Term::Def(definitions, term) => {
            let guarded = |def: Def<_>| Def { body: guard(def.body), ..def };
            Term::Def(definitions.into_iter().map(guarded).collect(), boxed(term))
        }
        Term::Call(name, arguments) => Term::Call(name, all(arguments)),
        Term::Path(term, Path(parts)) => {
            let guarded = |(part, optional)| (guard_access(part), optional);
            Term::Path(boxed(term), Path(parts.into_iter().map(guarded).collect()))
        }
        Term::Id | Term::Recurse | Term::Num(_) | Term::Break(_) | Term::Var(_) => term,
    }
}

fn guard_operation<'s>(left: Source<'s>, operator: BinaryOp<&'s str>, right: Source<'s>) -> Source<'s> {
    let operation = |left, operator, right| Term::BinOp(Box::new(left), operator, Box::new(right));
    match operator {
        BinaryOp::Math(Math::Mul) => Term::Call(PRODUCT, vec![left, right]),
        // `l *= r` is `r as $x | l |= . * $x`.
        BinaryOp::UpdateMath(Math::Mul) => {
            let product = Term::Call(PRODUCT, vec![Term::Id, Term::Var(FACTOR)]);
            let update = operation(left, BinaryOp::Update, product);
            operation(right, BinaryOp::Pipe(Some(Pattern::Var(FACTOR))), update)
        }
        BinaryOp::Pipe(pattern) => operation(left, BinaryOp::Pipe(pattern.map(guard_pattern)), right),
        other => operation(left, other, right),
    }
}

fn guard_pattern(pattern: Pattern<&str>) -> Pattern<&str> {
    match pattern {
        Pattern::Var(name) => Pattern::Var(name),
        Pattern::Arr(items) => Pattern::Arr(items.into_iter().map(guard_pattern).collect()),
        Pattern::Obj(entries) => Pattern::Obj(
            entries.into_iter().map(|(key, pattern)| (guard(key), guard_pattern(pattern))).collect(),
        ),
    }
}

fn guard_part<'s>(part: StrPart<&'s str, Source<'s>>) -> StrPart<&'s str, Source<'s>> {
    match part {
        StrPart::Term(term) => StrPart::Term(guard(term)),
        text @ (StrPart::Str(_) | StrPart::Char(_)) => text,
    }
}

fn guard_access(part: Part<Source<'_>>) -> Part<Source<'_>> {
    match part {
        Part::Index(index) => Part::Index(guard(index)),
        Part::Range(from, to) => Part::Range(from.map(guard), to.map(guard)),
    }
}

#[expect(clippy::boxed_local, reason = "jaq's terms hold boxes")]
fn boxed(term: Box<Source<'_>>) -> Box<Source<'_>> {
    Box::new(guard(*term))
}

fn all(terms: Vec<Source<'_>>) -> Vec<Source<'_>> {
    terms.into_iter().map(guard).collect()
}
