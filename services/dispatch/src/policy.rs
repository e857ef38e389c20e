//! Translates the configured retries, statuses and breakers into policies.

use throughline_config as config;
use throughline_resilience::{BreakerPolicy, Meaning, Pauses, RetryPolicy, Statuses};

pub(crate) fn retry(settings: &config::Retry) -> RetryPolicy {
    let config::Retry { immediate_retries, base, factor, max, ref schedule, window, .. } = *settings;
    let pauses = match schedule.as_slice() {
        [] => Pauses::Exponential { base, factor, max },
        by_hand => Pauses::Schedule(by_hand.to_vec()),
    };
    RetryPolicy { attempts: settings.most_attempts(), immediate_retries, pauses, window }
}

pub(crate) fn statuses(settings: &config::Destination) -> Statuses {
    let meaning = |meaning| match meaning {
        config::StatusMeaning::Delivered => Meaning::Delivered,
        config::StatusMeaning::Retry => Meaning::Retry,
        config::StatusMeaning::Dead => Meaning::Dead,
    };
    Statuses::with(settings.statuses.iter().map(|(status, means)| (*status, meaning(*means))))
}

pub(crate) fn breaker(settings: &config::Breaker) -> BreakerPolicy {
    BreakerPolicy {
        consecutive: settings.consecutive.get(),
        failure_rate: settings.failure_rate,
        minimum_calls: settings.minimum_calls.get(),
        window: settings.window,
        open: settings.open,
        max_open: settings.max_open,
        probes: settings.probes.get(),
    }
}
