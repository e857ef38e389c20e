use serde::de::IgnoredAny;

/// Maximum nesting depth of JSON that is read, as in most JSON parsers: jaq recurses, and a stack overflow ends the
/// process.
const DEEPEST: usize = 128;
/// Maximum number of consecutive digits: the time to read and print an integer is quadratic in its digits.
pub(crate) const MOST_DIGITS: usize = 4096;

/// Why a text is not JSON that a filter can read or produce.
#[derive(Debug, thiserror::Error)]
pub enum NotJson {
    /// It is not JSON (RFC 8259).
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// It is not UTF-8.
    #[error("not UTF-8")]
    Encoding(#[from] std::str::Utf8Error),
    /// Its arrays and objects are nested too deep.
    #[error("arrays and objects are nested deeper than {DEEPEST}")]
    Depth,
    /// A number in it is too long.
    #[error("a number has more than {MOST_DIGITS} digits")]
    Digits,
}

/// Checks a text against RFC 8259: jaq reads and writes a superset of it (comments, `NaN`, bytes, keys that are not
/// strings).
pub(crate) fn check_syntax(text: &[u8]) -> Result<(), NotJson> {
    serde_json::from_str::<IgnoredAny>(std::str::from_utf8(text)?)?;
    Ok(())
}

/// Whether jaq can read a text in bounded stack and time; the text need not be JSON.
pub(crate) fn check_size(text: &[u8]) -> Result<(), NotJson> {
    let (mut depth, mut digits) = (0_usize, 0_usize);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
        if depth > DEEPEST {
            return Err(NotJson::Depth);
        }
        if digits > MOST_DIGITS {
            return Err(NotJson::Digits);
        }
    }
    Ok(())
}

fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
}

/// Checks whether a text may be passed to [`jaq_json::read::parse_single`].
pub(crate) fn check(text: &[u8]) -> Result<(), NotJson> {
    check_syntax(text)?;
    check_size(text)
}
