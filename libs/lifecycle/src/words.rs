use std::error::Error;

/// An error and its causes in one line, each said once: many errors already say their cause themselves.
#[must_use]
pub fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("cannot listen: {0}; take another port")]
        Saying(#[source] io::Error),
        #[error("cannot listen")]
        Silent(#[source] io::Error),
    }

    #[test]
    fn a_cause_is_said_once() {
        let taken = || io::Error::other("address in use");
        assert_eq!(in_words(&Failed::Saying(taken())), "cannot listen: address in use; take another port");
        assert_eq!(in_words(&Failed::Silent(taken())), "cannot listen: address in use");
    }
}
