use std::error::Error;
use std::process::ExitCode;

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

/// A program's exit code. A failure is said in one line on stderr: telemetry may not be there to say it.
#[expect(clippy::print_stderr, reason = "somebody has to say it")]
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
