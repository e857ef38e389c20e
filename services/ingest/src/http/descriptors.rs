//! How many connections the process may have open: each takes a file descriptor.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but clients: sessions of the database, brokers, health checks, files, and, where dispatch
/// runs in the same process, its calls.
const OTHERS: u64 = 1024;

/// Raises the limit of open files as far as `wanted` connections need it and the system lets it, and gives how many
/// connections fit: without a descriptor left, nothing else would work either.
pub(crate) fn connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let needed = wanted as u64 + OTHERS;
    let current = limit.current.unwrap_or(u64::MAX);
    let most = limit.maximum.unwrap_or(u64::MAX).min(needed);
    let raised = Rlimit { current: Some(most), maximum: limit.maximum };
    let descriptors =
        if current < most && setrlimit(Resource::Nofile, raised).is_ok() { most } else { current };
    let fit = usize::try_from(fitting(descriptors)).unwrap_or(usize::MAX).min(wanted);
    if fit < wanted {
        tracing::warn!(
            event = "few_descriptors",
            connections = fit,
            descriptors,
            "the limit of open files bounds the connections: raise it (ulimit -n) to {needed}"
        );
    }
    fit
}

/// What is left for connections; where there are few descriptors, half.
fn fitting(descriptors: u64) -> u64 {
    descriptors.saturating_sub(OTHERS).max(descriptors / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_keep_their_descriptors() {
        for (descriptors, connections) in [(256, 128), (1024, 512), (4096, 3072), (u64::MAX, u64::MAX - 1024)]
        {
            assert_eq!(fitting(descriptors), connections, "{descriptors}");
        }
    }

    #[test]
    fn no_more_connections_than_wanted_are_said_to_fit() {
        assert_eq!(connections(1), 1);
        assert!(getrlimit(Resource::Nofile).current.is_none_or(|limit| limit > 1));
    }
}
