//! Limits how many connections the process opens: each takes a file descriptor.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but clients: database sessions, brokers, health checks, files and, if dispatch runs in
/// the same process, its calls.
const OTHERS: u64 = 1024;

/// Raises the limit of open files as far as `wanted` connections need it and the system permits it, and returns how
/// many connections fit: without a free descriptor, nothing else would work either.
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
            event = "descriptors.low",
            connections = fit,
            descriptors,
            "the limit of open files bounds the connections: raise it (ulimit -n) to {needed}"
        );
    }
    fit
}

/// Returns how many descriptors are left for connections; half of them if there are few.
fn fitting(descriptors: u64) -> u64 {
    descriptors.saturating_sub(OTHERS).max(descriptors / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_reserved_for_other_purposes() {
        for (descriptors, connections) in [(256, 128), (1024, 512), (4096, 3072), (u64::MAX, u64::MAX - 1024)]
        {
            assert_eq!(fitting(descriptors), connections, "{descriptors}");
        }
    }

    #[test]
    fn at_most_the_wanted_number_of_connections_fits() {
        assert_eq!(connections(1), 1);
        assert!(getrlimit(Resource::Nofile).current.is_none_or(|limit| limit > 1));
    }
}
