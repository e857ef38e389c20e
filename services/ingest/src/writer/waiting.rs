//! The writer's end of the queue: selects the requests to commit next and the requests to refuse.
//!
//! Normally the writer commits the oldest requests first. When more requests arrive than the database commits, a queue
//! that is served in order is useless as soon as requests wait longer than their clients do: each commit is then for a
//! client that has disconnected. So a queue that no batch has emptied for an [`INTERVAL`] is overload. In overload, a
//! batch takes the youngest requests, and the others are refused immediately: no request waits for more than one commit
//! besides its own, commits stay full, and overload ends with the first batch that takes all queued requests. A burst
//! that the next commits absorb is not overload.
//!
//! The interval comes from `CoDel` (RFC 8289), the order from Facebook's adaptive LIFO (Maurer, "Fail at Scale", ACM
//! Queue 2015).

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::queue::{CommitResult, Queued};

/// Maximum bytes of bodies in one commit: enough for hundreds of ordinary requests, and small enough that a statement
/// with large ones stays a fraction of the `PostgreSQL` limit (1 GiB).
const BATCH_BYTES: usize = 8 << 20;
/// How long batches may leave requests in the queue before the writer treats it as overload: longer than the writer
/// takes to catch up after a hiccup of the database, and a fraction of `http.timeout`.
const INTERVAL: Duration = Duration::from_secs(1);

/// Requests that wait for the writer.
pub(super) struct Waiting {
    entries: mpsc::Receiver<Queued>,
    /// Maximum number of requests in one batch.
    batch: usize,
    /// Since when every batch has left requests in the queue.
    backlog_since: Option<Instant>,
    is_overloaded: bool,
}

impl Waiting {
    pub(super) fn new(entries: mpsc::Receiver<Queued>, batch: usize) -> Self {
        Self { entries, batch, backlog_since: None, is_overloaded: false }
    }

    /// Waits for a request and takes a batch of the queued ones; returns `None` once the queue is empty and
    /// all its senders are dropped. Drops requests of clients that have disconnected.
    pub(super) async fn next_batch(&mut self) -> Option<Vec<Queued>> {
        loop {
            let first = self.entries.recv().await?;
            if !first.answer.is_closed() {
                return Some(self.take(first));
            }
            if self.entries.is_empty() {
                self.backlog_since = None;
            }
        }
    }

    fn take(&mut self, first: Queued) -> Vec<Queued> {
        let (batch, left) = if self.is_overloaded() { self.youngest(first) } else { self.oldest(first) };
        if left == 0 {
            self.backlog_since = None;
        } else {
            self.backlog_since.get_or_insert_with(Instant::now);
        }
        batch
    }

    /// Returns whether the writer is overloaded; logs when overload begins and when it ends.
    fn is_overloaded(&mut self) -> bool {
        let is_overloaded = self.backlog_since.is_some_and(|since| since.elapsed() >= INTERVAL);
        match (self.is_overloaded, is_overloaded) {
            (false, true) => tracing::warn!(
                event = "ingest.overloaded",
                waiting = self.entries.len(),
                "requests arrive faster than the database commits them; refusing those that have waited longest"
            ),
            (true, false) => tracing::info!(
                event = "ingest.overload_ended",
                "the database commits requests as fast as they arrive; none is refused"
            ),
            (true, true) | (false, false) => {}
        }
        self.is_overloaded = is_overloaded;
        is_overloaded
    }

    /// Takes a batch of the oldest requests, in order of arrival; also returns how many stay queued.
    fn oldest(&mut self, first: Queued) -> (Vec<Queued>, usize) {
        let mut bytes = first.submission.payload.body.len();
        let mut batch = vec![first];
        while batch.len() < self.batch && bytes < BATCH_BYTES {
            let Some(queued) = self.pop() else { break };
            bytes += queued.submission.payload.body.len();
            batch.push(queued);
        }
        (batch, self.entries.len())
    }

    /// Takes a batch of the youngest requests, in order of arrival; also returns how many others were refused.
    fn youngest(&mut self, first: Queued) -> (Vec<Queued>, usize) {
        let mut batch = vec![first];
        // Requests that arrive meanwhile are for the next batch; otherwise this loop might not end.
        for _ in 0..self.entries.len() {
            batch.extend(self.pop());
        }
        let mut bytes = 0;
        let youngest = batch.iter().rev().take(self.batch).take_while(|queued| {
            let fits = bytes < BATCH_BYTES;
            bytes += queued.submission.payload.body.len();
            fits
        });
        let refused = batch.len() - youngest.count();
        for queued in batch.drain(..refused) {
            // The client may have disconnected just now.
            let _ = queued.answer.send(CommitResult::Overloaded);
        }
        (batch, refused)
    }

    /// Returns the next queued request of a client that still waits, if there is one.
    fn pop(&mut self) -> Option<Queued> {
        loop {
            let queued = self.entries.try_recv().ok()?;
            if !queued.answer.is_closed() {
                return Some(queued);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use throughline_snowflake::RequestId;
    use tokio::time::{sleep, sleep_until, timeout};

    use super::super::queue::Queue;
    use super::super::tests::submission;
    use super::*;

    /// A database that commits 64 requests in half a second, 128 a second.
    const BATCH: usize = 64;
    const COMMIT: Duration = Duration::from_millis(500);
    /// How long a client waits for its answer.
    const DEADLINE: Duration = Duration::from_secs(2);

    fn accepted() -> CommitResult {
        CommitResult::Accepted(RequestId::from_i64(1).unwrap())
    }

    /// Returns the queue of an ingest, and the number of requests that it has committed. Its commits take the times in
    /// the list, and then the last of them again and again.
    fn ingest(commits: &'static [Duration]) -> (Queue, Arc<AtomicUsize>) {
        let (queue, mut waiting) = Queue::new(4096, 1 << 30, BATCH);
        let committed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&committed);
        tokio::spawn(async move {
            let last = commits.last().unwrap();
            let mut commits = commits.iter().chain(std::iter::repeat(last));
            while let Some(batch) = waiting.next_batch().await {
                assert!(batch.len() <= BATCH);
                sleep(*commits.next().unwrap()).await;
                count.fetch_add(batch.len(), Ordering::Relaxed);
                for queued in batch {
                    let _ = queued.answer.send(accepted());
                }
            }
        });
        (queue, committed)
    }

    /// The answers that clients got. They arrive at a constant rate, wait for two seconds, and retry a second after a
    /// refusal.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Got {
        accepted: usize,
        refused: usize,
        late: usize,
    }

    async fn clients(queue: &Queue, rate: u32, time: Duration) -> Got {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let mut clients = tokio::task::JoinSet::new();
        let (begin, end) = (Instant::now(), Instant::now() + time);
        for number in 0..rate * u32::try_from(time.as_secs()).unwrap() {
            sleep_until(begin + Duration::from_secs(1) * number / rate).await;
            let (queue, got) = (queue.clone(), sender.clone());
            clients.spawn(async move {
                while Instant::now() < end {
                    let answer = timeout(DEADLINE, queue.submit(submission(&queue))).await;
                    let is_refused = matches!(answer, Ok(None | Some(CommitResult::Overloaded)));
                    got.send(answer).unwrap();
                    if !is_refused {
                        break;
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            });
        }
        clients.join_all().await;
        drop(sender);
        let mut got = Got::default();
        while let Some(answer) = receiver.recv().await {
            match answer {
                Ok(Some(CommitResult::Accepted(_))) => got.accepted += 1,
                Ok(None | Some(CommitResult::Overloaded)) => got.refused += 1,
                Err(_) => got.late += 1,
                Ok(Some(other)) => panic!("{other:?}"),
            }
        }
        got
    }

    #[tokio::test(start_paused = true)]
    async fn overload_does_not_reduce_the_number_of_served_clients() {
        let (queue, committed) = ingest(&[COMMIT]);
        let got = clients(&queue, 3 * 128, Duration::from_mins(1)).await;
        // 7680 is its capacity in a minute.
        assert!(got.accepted >= 7680 * 9 / 10, "{got:?}");
        assert!(got.late <= 7680 / 20, "few clients time out: {got:?}");
        let for_disconnected = committed.load(Ordering::Relaxed) - got.accepted;
        assert!(
            for_disconnected <= 7680 / 50,
            "{for_disconnected} were committed for disconnected clients: {got:?}"
        );

        let after = clients(&queue, 64, Duration::from_secs(10)).await;
        assert_eq!(after, Got { accepted: 640, ..Got::default() }, "overload is over");
    }

    #[tokio::test(start_paused = true)]
    async fn below_capacity_a_burst_or_a_hiccup_is_no_overload() {
        const HICCUP: [Duration; 3] =
            [Duration::from_millis(1), Duration::from_millis(1800), Duration::from_millis(10)];
        let (queue, committed) = ingest(&HICCUP);
        let got = clients(&queue, 100, Duration::from_secs(30)).await;
        assert_eq!((got.refused, got.late), (0, 0), "{got:?}");
        assert_eq!(committed.load(Ordering::Relaxed), got.accepted);
        let burst = futures_util::future::join_all((0..4000).map(|_| queue.submit(submission(&queue))));
        let answers = burst.await;
        assert!(answers.into_iter().all(|answer| answer == Some(accepted())));
    }

    fn names(batch: &[Queued]) -> Vec<String> {
        batch.iter().map(|queued| queued.submission.payload.content_type.clone()).collect()
    }

    /// Returns the answer to a queued request with this name.
    fn enqueue(queue: &Queue, name: &str) -> Pin<Box<impl Future<Output = Option<CommitResult>> + use<>>> {
        enqueue_body(queue, name, "{}".into())
    }

    fn enqueue_body(
        queue: &Queue,
        name: &str,
        body: Bytes,
    ) -> Pin<Box<impl Future<Output = Option<CommitResult>> + use<>>> {
        let content_type = name.to_owned();
        let mut submission = submission(queue);
        (submission.payload.body, submission.payload.content_type) = (body, content_type);
        let queue = queue.clone();
        let mut answer = Box::pin(async move { queue.submit(submission).await });
        assert_eq!((&mut answer).now_or_never(), None);
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_requests_are_refused_in_overload_and_each_batch_keeps_the_order() {
        let (queue, mut waiting) = Queue::new(100, 1 << 20, 2);
        let mut answers: Vec<_> = ["a", "b", "c", "d", "e", "f"].map(|name| enqueue(&queue, name)).into();
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["a", "b"]);
        sleep(INTERVAL).await;
        answers.push(enqueue(&queue, "g"));
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["f", "g"]);
        for mut refused in answers.drain(2..5) {
            assert_eq!((&mut refused).now_or_never(), Some(Some(CommitResult::Overloaded)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_disconnected_clients_are_in_no_batch() {
        let (queue, mut waiting) = Queue::new(100, 1 << 20, 2);
        let [_a, b, _c, _d, e, _f] = ["a", "b", "c", "d", "e", "f"].map(|name| enqueue(&queue, name));
        drop((b, e));
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["a", "c"]);
        sleep(INTERVAL).await;
        let [_g, h] = ["g", "h"].map(|name| enqueue(&queue, name));
        drop(h);
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["f", "g"], "in overload");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_disconnected_clients_are_no_overload() {
        let (queue, mut waiting) = Queue::new(100, 1 << 20, 2);
        let [_a, _b, c] = ["a", "b", "c"].map(|name| enqueue(&queue, name));
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["a", "b"]);
        drop(c);
        assert!(waiting.next_batch().now_or_never().is_none());
        sleep(INTERVAL).await;
        let [_d, _e, _f] = ["d", "e", "f"].map(|name| enqueue(&queue, name));
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["d", "e"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_of_large_bodies_has_few_requests_in_overload_too() {
        let (queue, mut waiting) = Queue::new(100, 1 << 20, 64);
        let enqueue = |name| enqueue_body(&queue, name, vec![b' '; BATCH_BYTES / 2].into());
        let _answers = ["a", "b", "c", "d"].map(enqueue);
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["a", "b"]);
        sleep(INTERVAL).await;
        let _answers = ["e"].map(enqueue);
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["d", "e"]);
    }
}
