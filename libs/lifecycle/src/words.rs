use std::error::Error;
use std::process::ExitCode;

/// Returns an error and its causes in one line. A cause that is already part of the text is left out, since many errors
/// include their cause.
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

/// Returns a program's exit code. A failure is printed in one line on stderr, because telemetry may be unavailable.
#[expect(clippy::print_stderr, reason = "no logger may be installed yet")]
pub fn exit_code(program: &str, ended: Result<(), impl AsRef<dyn Error + Send + Sync>>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {}", in_words(error.as_ref()));
            ExitCode::FAILURE
        }
    }
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
