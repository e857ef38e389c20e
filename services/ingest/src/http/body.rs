//! Receives the body of a request.
//!
//! A body takes room in the writer's queue as it arrives: a client that announces a body and sends none takes none.
//! Bodies that have arrived in part never wait for room, so they cannot block each other: one that cannot grow is
//! refused, and gives back what it had.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::problem::Problem;
use crate::writer::{Queue, Room};

pub(super) const BUSY: &str = "Too many requests are waiting to be stored.";

/// The bytes a second at which a body has to arrive, on average and after [`GRACE`]: an eighth of what 3G has.
pub(super) const SLOWEST: u32 = 16 << 10;
/// Long enough for a lost packet to be sent again twice.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// The bounds of a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// The largest body, in bytes.
    pub(super) limit: u64,
    /// For the whole body to arrive.
    pub(super) deadline: Duration,
}

/// The most bytes that the body may have by its head.
///
/// # Errors
/// [`Problem::BodyTooLarge`] if it announces more than the limit.
pub(super) fn announced(headers: &HeaderMap, limit: u64) -> Result<u64, Problem> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match announced {
        Some(length) if length > limit => Err(Problem::BodyTooLarge { limit }),
        Some(length) => Ok(length),
        None => Ok(limit),
    }
}

/// Reads a body of at most `announced` bytes, with the room that it takes.
///
/// # Errors
/// [`Problem`] if it is too large, too slow or broken, or there is no room for it.
pub(super) async fn receive(
    mut body: Body,
    announced: u64,
    bounds: Bounds,
    queue: &Queue,
) -> Result<(Bytes, Room), Problem> {
    let most = usize::try_from(announced).unwrap_or(usize::MAX);
    let limit = usize::try_from(bounds.limit).unwrap_or(usize::MAX);
    let began = Instant::now();
    let mut room = queue.reserve(0).ok_or(Problem::Unavailable(BUSY))?;
    // Copied: what the connection hands over may keep far larger buffers alive.
    let mut bytes = Vec::new();
    loop {
        let due = began + time_for(bytes.len()).min(bounds.deadline);
        let in_time = timeout_at(due, body.frame()).await;
        let frame = in_time.map_err(|_| Problem::BodyTimeout { deadline: bounds.deadline })?;
        let Some(frame) = frame else { break };
        // Else trailers.
        let Ok(data) = frame.map_err(|_| Problem::BodyBroken)?.into_data() else { continue };
        let length = bytes.len().saturating_add(data.len());
        if length > limit {
            return Err(Problem::BodyTooLarge { limit: bounds.limit });
        }
        if length > bytes.capacity() {
            let capacity = length.max(bytes.capacity().saturating_mul(2).min(most));
            if !room.grow(capacity as u64) {
                return Err(Problem::Unavailable(BUSY));
            }
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.into(), room))
}

/// How long a body may take in all, of which so many bytes have arrived, until the next ones do.
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

    type Received = Result<(Bytes, Room), Problem>;

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

    /// Receives in a task of its own what the client sends.
    fn receiving(
        queue: &Queue,
        announced: u64,
        bounds: Bounds,
    ) -> (JoinHandle<Received>, mpsc::UnboundedSender<usize>) {
        let (body, client) = body();
        let queue = queue.clone();
        let received = tokio::spawn(async move { receive(body, announced, bounds, &queue).await });
        (received, client)
    }

    /// Until every task has come to a stop, which on a paused clock is before any time passes.
    async fn settled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_takes_room_as_it_arrives_and_not_as_it_is_announced() {
        let queue = Queue::of_bytes(8 << 10);
        let (first, client) = receiving(&queue, 8 << 10, BOUNDS);
        settled().await;
        assert!(queue.reserve(8 << 10).is_some(), "nothing has arrived");
        client.send(3 * KIB).unwrap();
        settled().await;
        assert!(queue.reserve(6 << 10).is_none() && queue.reserve(5 << 10).is_some());
        drop(client);
        let (bytes, room) = first.await.unwrap().unwrap();
        assert_eq!(bytes.len(), 3 * KIB);
        assert!(queue.reserve(6 << 10).is_none(), "the writer has it now");
        drop(room);
        assert!(queue.reserve(8 << 10).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_cannot_grow_is_refused_and_makes_room_for_the_others() {
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
    async fn a_body_that_is_too_slow_is_given_up() {
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
    async fn a_body_at_the_slowest_rate_may_take_until_its_deadline() {
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
    async fn a_body_that_outgrows_its_limit_is_too_large() {
        let queue = Queue::of_bytes(1 << 20);
        let (received, client) = receiving(&queue, 4 << 10, Bounds { limit: 4 << 10, ..BOUNDS });
        client.send(4 * KIB).unwrap();
        client.send(1).unwrap();
        assert!(matches!(received.await.unwrap(), Err(Problem::BodyTooLarge { limit: 4096 })));
        assert!(queue.reserve(1 << 20).is_some());
    }
}
