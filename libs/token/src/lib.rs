//! OAuth2 client-credentials tokens ([RFC 6749, 4.4](https://www.rfc-editor.org/rfc/rfc6749#section-4.4)),
//! cached.
//!
//! [`Tokens::get`] answers from memory. Without a usable token it asks the token endpoint, once however
//! many wait for it, and goes on asking when those who wait lose patience. A token is taken for expired
//! 30 seconds early, or a tenth of its lifetime if that is less; one that is used after four fifths of its
//! lifetime is renewed in the background, while everybody still gets the old one. What a third party answers
//! with 401 is thrown away by [`Tokens::discard`].
//!
//! While the endpoint gives none, a token that is still good is used until its end. After that everybody gets the
//! last error at once, and one request at a time finds out whether the endpoint is back: after a second, then
//! after twice as long each time, up to half a minute.
//!
//! Token endpoints are sloppy, so an answer is read generously:
//!
//! | field | how it is read |
//! |---|---|
//! | `access_token` | required |
//! | `token_type` | `Bearer` in any case, or absent; another type is an error |
//! | `expires_in` | seconds as a number or a string, with or without a fraction; 5 minutes when it is absent or no number; a day at most |
//!
//! The content type of the answer does not matter, nor do a byte order mark and white space around it. It may
//! be 64 KiB long.
//!
//! No token and no secret is in what is logged or traced, in an error, or in a `Debug` text; of an error that
//! the endpoint answers, only well-known codes are passed on.

mod access_token;
mod answer;
mod error;
mod fetch;
mod identity;
mod slot;
mod tokens;

pub use access_token::AccessToken;
pub use error::TokenError;
pub use tokens::Tokens;
