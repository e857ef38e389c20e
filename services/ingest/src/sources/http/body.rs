//! Receives the body of a request.
//!
//! A body takes its share of the writer's budget as it arrives: a client that announces a body and sends none takes
//! none. Bodies that have arrived in part never wait for the budget, so they cannot block each other: a body that
//! cannot grow is refused, and releases its share.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::BUSY;
use crate::accept::BodyPermit;
use crate::http::Problem;

/// Minimum rate of a body in bytes per second, on average and after [`GRACE`]: an eighth of the rate of 3G.
const SLOWEST: u32 = 16 << 10;
/// Long enough for a lost packet to be retransmitted twice.
const GRACE: Duration = Duration::from_secs(2);

/// The limits of a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Maximum size, in bytes.
    pub(super) limit: u64,
    /// Maximum time for the whole body to arrive.
    pub(super) deadline: Duration,
}

/// Returns the maximum size of a body according to its head, in bytes.
///
/// # Errors
/// [`Problem::BodyTooLarge`] if the announced size exceeds the limit.
pub(super) fn announced(headers: &HeaderMap, limit: u64) -> Result<u64, Problem> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match announced {
        Some(length) if length > limit => Err(Problem::BodyTooLarge { limit }),
        Some(length) => Ok(length),
        None => Ok(limit),
    }
}

/// Reads a body of at most `announced` bytes, and returns it with its permit, which grows as the body arrives.
///
/// # Errors
/// [`Problem`] if the body is too large, too slow or broken, or if the budget is used up.
pub(super) async fn receive(
    mut body: Body,
    announced: u64,
    bounds: Bounds,
    mut permit: BodyPermit,
) -> Result<(Bytes, BodyPermit), Problem> {
    let most = usize::try_from(announced).unwrap_or(usize::MAX);
    let limit = usize::try_from(bounds.limit).unwrap_or(usize::MAX);
    let began = Instant::now();
    // Copied: a frame from the connection may keep a far larger buffer alive.
    let mut bytes = Vec::new();
    loop {
        let due = began + time_for(bytes.len()).min(bounds.deadline);
        let in_time = timeout_at(due, body.frame()).await;
        let frame = in_time.map_err(|_| too_slow(bounds))?;
        let Some(frame) = frame else { break };
        // Any other frame holds trailers.
        let Ok(data) = frame.map_err(|_| Problem::BodyBroken)?.into_data() else { continue };
        let length = bytes.len().saturating_add(data.len());
        if length > limit {
            return Err(Problem::BodyTooLarge { limit: bounds.limit });
        }
        if length > bytes.capacity() {
            let capacity = length.max(bytes.capacity().saturating_mul(2).min(most));
            if !permit.grow(capacity as u64) {
                return Err(Problem::Unavailable(BUSY));
            }
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.into(), permit))
}

fn too_slow(bounds: Bounds) -> Problem {
    Problem::BodyTimeout { deadline: bounds.deadline, grace: GRACE, rate: SLOWEST }
}

/// Returns the deadline of the next bytes, measured from the start of the body, after `arrived` bytes.
fn time_for(arrived: usize) -> Duration {
    let bytes = u32::try_from(arrived).unwrap_or(u32::MAX);
    GRACE + Duration::from_secs(1) * bytes / SLOWEST
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::writer::Queue;

    type Received = Result<(Bytes, BodyPermit), Problem>;

    const KIB: usize = 1 << 10;
    const BOUNDS: Bounds = Bounds { limit: 1 << 20, deadline: Duration::from_mins(1) };

    /// A body, and the client's end of it.
    fn body() -> (Body, mpsc::UnboundedSender<usize>) {
        let (client, sent) = mpsc::unbounded_channel::<usize>();
        let frames = futures_util::stream::unfold(sent, async |mut sent| {
            let length = sent.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b' '; length]))), sent))
        });
        (Body::new(StreamBody::new(Box::pin(frames))), client)
    }

    /// Receives a body from the client in a separate task.
    fn receiving(
        queue: &Queue,
        announced: u64,
        bounds: Bounds,
    ) -> (JoinHandle<Received>, mpsc::UnboundedSender<usize>) {
        let (body, client) = body();
        let permit = queue.reserve(0).unwrap();
        let received = tokio::spawn(receive(body, announced, bounds, permit));
        (received, client)
    }

    /// Until every task has come to a stop, which on a paused clock is before any time passes.
    async fn settled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_reserves_budget_as_it_arrives_not_as_it_is_announced() {
        let queue = Queue::of_bytes(8 << 10);
        let (first, client) = receiving(&queue, 8 << 10, BOUNDS);
        settled().await;
        assert!(queue.reserve(8 << 10).is_some(), "nothing has arrived");
        client.send(3 * KIB).unwrap();
        settled().await;
        assert!(queue.reserve(6 << 10).is_none() && queue.reserve(5 << 10).is_some());
        drop(client);
        let (bytes, permit) = first.await.unwrap().unwrap();
        assert_eq!(bytes.len(), 3 * KIB);
        assert!(queue.reserve(6 << 10).is_none(), "the writer has it now");
        drop(permit);
        assert!(queue.reserve(8 << 10).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_exceeds_the_budget_is_refused_and_releases_its_permit() {
        let queue = Queue::of_bytes(8 << 10);
        let (first, to_first) = receiving(&queue, 8 << 10, BOUNDS);
        let (second, to_second) = receiving(&queue, 8 << 10, BOUNDS);
        to_first.send(4 * KIB).unwrap();
        to_second.send(4 * KIB).unwrap();
        settled().await;
        to_second.send(KIB).unwrap();
        assert!(matches!(second.await.unwrap(), Err(Problem::Unavailable(_))));
        to_first.send(4 * KIB).unwrap();
        drop(to_first);
        assert_eq!(first.await.unwrap().unwrap().0.len(), 8 * KIB);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_below_the_minimum_rate_times_out() {
        let queue = Queue::of_bytes(1 << 20);
        let (stalled, _client) = receiving(&queue, 1 << 20, BOUNDS);
        let began = Instant::now();
        assert!(matches!(stalled.await.unwrap(), Err(Problem::BodyTimeout { .. })));
        assert_eq!(began.elapsed().as_secs(), GRACE.as_secs());

        let (slow, client) = receiving(&queue, 1 << 20, BOUNDS);
        let began = Instant::now();
        let feeding = tokio::spawn(async move {
            while client.send(KIB).is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        assert!(matches!(slow.await.unwrap(), Err(Problem::BodyTimeout { .. })));
        assert_eq!(began.elapsed().as_secs(), GRACE.as_secs(), "2 KiB/s gain it no second");
        feeding.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_at_the_minimum_rate_may_arrive_until_its_deadline() {
        let queue = Queue::of_bytes(1 << 20);
        for (deadline, arrives) in [(Duration::from_mins(1), true), (Duration::from_secs(5), false)] {
            let (received, client) = receiving(&queue, 1 << 20, Bounds { deadline, ..BOUNDS });
            tokio::spawn(async move {
                for _ in 0..30 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    // The receiver may have given up.
                    let _ = client.send(16 * KIB);
                }
            });
            assert_eq!(received.await.unwrap().is_ok(), arrives, "{deadline:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_exceeds_its_limit_is_too_large() {
        let queue = Queue::of_bytes(1 << 20);
        let (received, client) = receiving(&queue, 4 << 10, Bounds { limit: 4 << 10, ..BOUNDS });
        client.send(4 * KIB).unwrap();
        client.send(1).unwrap();
        assert!(matches!(received.await.unwrap(), Err(Problem::BodyTooLarge { limit: 4096 })));
        assert!(queue.reserve(1 << 20).is_some());
    }
}
