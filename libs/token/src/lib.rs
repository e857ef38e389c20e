//! OAuth2 client-credentials tokens ([RFC 6749, 4.4](https://www.rfc-editor.org/rfc/rfc6749#section-4.4)),
//! cached.
//!
//! [`Tokens::get`] returns a token from memory. Without a usable token it sends a request to the token endpoint: a
//! single one, however many callers wait, and it continues even if all of them stop waiting. A token counts as
//! expired 30 seconds early, or a tenth of its lifetime early if that is less. Once four fifths of its lifetime have
//! passed, the next use starts a renewal in the background, and callers still get the old token meanwhile.
//! [`Tokens::discard`] removes a token that a third party rejected with 401.
//!
//! While the endpoint issues no token, a valid one is used until it expires. After that every caller gets the last
//! error immediately, and one request at a time probes whether the endpoint has recovered: after a second, then after
//! twice as long each time, up to half a minute.
//!
//! Token endpoints often violate the standard, so responses are parsed leniently:
//!
//! | field | how it is parsed |
//! |---|---|
//! | `access_token` | required |
//! | `token_type` | `Bearer` in any case, or absent; any other type is an error |
//! | `expires_in` | seconds as a number or string, fractions allowed; 5 minutes if absent or not a number; at most a day |
//!
//! The content type of the response is ignored, as are a byte order mark and surrounding white space. The response
//! may have up to 64 KiB.
//!
//! Logs, traces, errors and `Debug` output contain no token and no secret. Of an error response, only well-known
//! codes are passed on.

mod access_token;
mod answer;
mod error;
mod fetch;
mod identity;
mod settings;
mod slot;
mod tokens;

pub use access_token::AccessToken;
pub use error::TokenError;
pub use settings::{Credentials, OAuth2, check_url};
pub use tokens::Tokens;
