//! The writer's end of the queue: which requests it commits next, and which it refuses.
//!
//! As a rule the oldest. When more requests come than the database commits, a queue that is served in order is useless
//! as soon as the wait in it is longer than clients wait: each commit is for a client that has gone. So a queue that
//! stands for an [`INTERVAL`], which no batch has taken whole, is overload. In overload a batch takes the youngest, and
//! the others are refused at once: no request waits for more than one commit besides its own, commits stay full, and
//! overload ends with the first batch that takes all that wait. A burst that the next commits take is no overload.
//!
//! The interval is that of `CoDel` (RFC 8289), the order that of Facebook's adaptive LIFO (Maurer, "Fail at Scale", ACM
//! Queue 2015).

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::queue::{Queued, Verdict};

/// Bytes of bodies in one commit: enough for hundreds of ordinary requests, small enough that a
/// statement with large ones stays a fraction of what `PostgreSQL` takes (1 GiB).
const BATCH_BYTES: usize = 8 << 20;
/// For this long a queue may stand before the writer takes it for overload: longer than a hiccup of the database
/// takes to catch up with, and a fraction of `http.timeout`.
const INTERVAL: Duration = Duration::from_secs(1);

/// Requests that wait for the writer.
pub(super) struct Waiting {
    entries: mpsc::Receiver<Queued>,
    /// Most requests in one batch.
    batch: usize,
    /// Since when each batch has left requests behind.
    standing_since: Option<Instant>,
    is_overloaded: bool,
}

impl Waiting {
    pub(super) fn new(entries: mpsc::Receiver<Queued>, batch: usize) -> Self {
        Self { entries, batch, standing_since: None, is_overloaded: false }
    }

    /// Takes no more requests from now on; those that wait are still to be taken.
    pub(super) fn close(&mut self) {
        self.entries.close();
    }

    /// Waits for a request, and takes a batch of those that wait; `None` once every queue is gone, or it is closed, and
    /// nothing waits. Requests whose clients have gone are dropped.
    pub(super) async fn next_batch(&mut self) -> Option<Vec<Queued>> {
        loop {
            let first = self.entries.recv().await?;
            if !first.answer.is_closed() {
                return Some(self.take(first));
            }
            if self.entries.is_empty() {
                self.standing_since = None;
            }
        }
    }

    fn take(&mut self, first: Queued) -> Vec<Queued> {
        let (batch, left) = if self.is_overloaded() { self.youngest(first) } else { self.oldest(first) };
        if left == 0 {
            self.standing_since = None;
        } else {
            self.standing_since.get_or_insert_with(Instant::now);
        }
        batch
    }

    /// Says so when it begins and when it ends.
    fn is_overloaded(&mut self) -> bool {
        let is_overloaded = self.standing_since.is_some_and(|since| since.elapsed() >= INTERVAL);
        match (self.is_overloaded, is_overloaded) {
            (false, true) => tracing::warn!(
                event = "ingest.overloaded",
                waiting = self.entries.len(),
                "more requests come than the database commits, those that wait longest are refused"
            ),
            (true, false) => tracing::info!(
                event = "ingest.overload_ended",
                "the database commits as many requests as come again, none is refused"
            ),
            (true, true) | (false, false) => {}
        }
        self.is_overloaded = is_overloaded;
        is_overloaded
    }

    /// A batch in the order in which requests came, and how many are left to wait.
    fn oldest(&mut self, first: Queued) -> (Vec<Queued>, usize) {
        let mut bytes = first.submission.body.len();
        let mut batch = vec![first];
        while batch.len() < self.batch && bytes < BATCH_BYTES {
            let Some(queued) = self.pop() else { break };
            bytes += queued.submission.body.len();
            batch.push(queued);
        }
        (batch, self.entries.len())
    }

    /// A batch of those that came last, in the order in which they came, and how many others were refused.
    fn youngest(&mut self, first: Queued) -> (Vec<Queued>, usize) {
        let mut batch = vec![first];
        // Those that come meanwhile are for the next batch, or this would have no end.
        for _ in 0..self.entries.len() {
            batch.extend(self.pop());
        }
        let mut bytes = 0;
        let youngest = batch.iter().rev().take(self.batch).take_while(|queued| {
            let has_room = bytes < BATCH_BYTES;
            bytes += queued.submission.body.len();
            has_room
        });
        let refused = batch.len() - youngest.count();
        for queued in batch.drain(..refused) {
            // Its client may have gone just now.
            let _ = queued.answer.send(Verdict::Overloaded);
        }
        (batch, refused)
    }

    /// The next request whose client still waits, if one is there.
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use throughline_snowflake::RequestId;
    use tokio::time::{sleep, sleep_until, timeout};

    use super::super::queue::Queue;
    use super::super::tests::submission;
    use super::*;

    /// A database that commits 64 requests in half a second, 128 a second.
    const BATCH: usize = 64;
    const COMMIT: Duration = Duration::from_millis(500);
    /// For so long a client waits for its answer.
    const PATIENCE: Duration = Duration::from_secs(2);

    fn accepted() -> Verdict {
        Verdict::Accepted(RequestId::from_i64(1).unwrap())
    }

    /// The queue of an ingest whose commits take a while, as many as there are in the list and then as long as the last
    /// one; and how many requests were committed.
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

    /// What clients got in this time, who come at this rate, wait for two seconds and come again a second after they
    /// were refused.
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
                    let answer = timeout(PATIENCE, queue.submit(submission(&queue))).await;
                    let is_refused = matches!(answer, Ok(None | Some(Verdict::Overloaded)));
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
                Ok(Some(Verdict::Accepted(_))) => got.accepted += 1,
                Ok(None | Some(Verdict::Overloaded)) => got.refused += 1,
                Err(_) => got.late += 1,
                Ok(Some(other)) => panic!("{other:?}"),
            }
        }
        got
    }

    #[tokio::test(start_paused = true)]
    async fn at_three_times_its_capacity_it_serves_as_many_clients_as_at_its_capacity_and_then_all_again() {
        let (queue, committed) = ingest(&[COMMIT]);
        let got = clients(&queue, 3 * 128, Duration::from_mins(1)).await;
        // 7680 is its capacity in a minute.
        assert!(got.accepted >= 7680 * 9 / 10, "{got:?}");
        assert!(got.late <= 7680 / 20, "few wait in vain: {got:?}");
        let for_nobody = committed.load(Ordering::Relaxed) - got.accepted;
        assert!(for_nobody <= 7680 / 50, "{for_nobody} were committed for clients that had gone: {got:?}");

        let after = clients(&queue, 64, Duration::from_secs(10)).await;
        assert_eq!(after, Got { accepted: 640, ..Got::default() }, "overload is over");
    }

    #[tokio::test(start_paused = true)]
    async fn below_its_capacity_it_refuses_none_and_a_burst_and_a_hiccup_are_no_overload() {
        const HICCUP: [Duration; 3] =
            [Duration::from_millis(1), Duration::from_millis(1800), Duration::from_millis(10)];
        let (queue, committed) = ingest(&HICCUP);
        let got = clients(&queue, 100, Duration::from_secs(30)).await;
        assert_eq!((got.refused, got.late), (0, 0), "{got:?}");
        assert_eq!(committed.load(Ordering::Relaxed), got.accepted);
        let at_once = futures_util::future::join_all((0..4000).map(|_| queue.submit(submission(&queue))));
        let answers = at_once.await;
        assert!(answers.into_iter().all(|answer| answer == Some(accepted())));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_longest_is_refused_in_overload_and_each_batch_keeps_the_order() {
        let (queue, mut waiting) = Queue::new(100, 1 << 20, 2);
        let names =
            |batch: &[Queued]| batch.iter().map(|it| it.submission.content_type.clone()).collect::<Vec<_>>();
        let mut answers = Vec::new();
        let mut come = |name: &str| {
            let submission = super::super::Submission { content_type: name.to_owned(), ..submission(&queue) };
            let mut answer = Box::pin(queue.submit(submission));
            assert_eq!(futures_util::FutureExt::now_or_never(&mut answer), None);
            answers.push(answer);
        };
        for name in ["a", "b", "c", "d", "e", "f"] {
            come(name);
        }
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["a", "b"]);
        sleep(INTERVAL).await;
        come("g");
        assert_eq!(names(&waiting.next_batch().await.unwrap()), ["f", "g"]);
        for mut refused in answers.drain(2..5) {
            assert_eq!(futures_util::FutureExt::now_or_never(&mut refused), Some(Some(Verdict::Overloaded)));
        }
    }
}
