//! Confines a panic to the record on which it happens.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt as _;

/// The message of a panic.
pub(crate) type Panic = String;

/// Runs a future to its end.
///
/// # Errors
/// If the future panics. It is then dropped, with everything that it owns.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(words)
}

/// Calls a function.
///
/// # Errors
/// If the function panics.
pub(crate) fn called<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(work)).map_err(words)
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`, which passes it by value")]
fn words(panic: Box<dyn Any + Send>) -> Panic {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_with_its_message_and_drops_the_future() {
        let held = Arc::new(());
        let holding = Arc::clone(&held);
        let panics = caught(async move {
            tokio::task::yield_now().await;
            panic!("attempt {}", Arc::strong_count(&holding));
        });
        assert_eq!(panics.await, Err::<(), _>("attempt 2".to_owned()));
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(caught(async { 1 }).await, Ok(1));
        assert_eq!(called(|| -> u8 { panic!("plain") }), Err("plain".to_owned()));
        assert_eq!(called(|| 1), Ok(1));
    }
}
