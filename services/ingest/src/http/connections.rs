//! The connections that are open, and which of them gives way when there are too many.
//!
//! A connection whose client has a complete request here is never closed for another. One that is silent, has sent a
//! part of a head or of a body, or is idle between two requests is closed when its place is needed: a client that opens
//! connections and sends nothing must not keep others out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;

/// One of this many is closed at a time: then the look at all of them, which that takes, is shared by many newcomers.
const SHARE: usize = 128;

/// The open connections.
#[derive(Debug)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    open: HashMap<Id, Open>,
    by_peer: HashMap<IpAddr, usize>,
    epoch: Instant,
}

#[derive(Debug)]
struct Open {
    peer: IpAddr,
    standing: Arc<Standing>,
    task: AbortHandle,
}

impl Connections {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), open: HashMap::new(), by_peer: HashMap::new(), epoch: Instant::now() }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// How many a peer has.
    pub(super) fn of(&self, peer: IpAddr) -> usize {
        self.by_peer.get(&peer).copied().unwrap_or_default()
    }

    /// Adds a connection, which is served by what `serve` makes of its standing.
    pub(super) fn add<F>(&mut self, peer: IpAddr, serve: impl FnOnce(Arc<Standing>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let standing = Arc::new(Standing::new(self.epoch));
        let task = self.tasks.spawn(serve(Arc::clone(&standing)));
        self.open.insert(task.id(), Open { peer, standing, task });
        *self.by_peer.entry(peer).or_default() += 1;
    }

    /// Waits for a connection to end; `None` if there is none.
    pub(super) async fn ended(&mut self) -> Option<()> {
        let id = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        self.forget(id);
        Some(())
    }

    /// Closes some of the connections that have no complete request, of one peer or of all: first those that never had
    /// one, and of these the oldest. Says how many.
    pub(super) fn shed(&mut self, peer: Option<IpAddr>) -> usize {
        let of_peer = |open: &&Open| peer.is_none_or(|peer| open.peer == peer);
        let candidate = |open: &Open| Some((open.standing.waiting()?, open.task.id()));
        let mut waiting: Vec<_> = self.open.values().filter(of_peer).filter_map(candidate).collect();
        let all = peer.map_or(self.len(), |peer| self.of(peer));
        let most = (all / SHARE).max(1);
        if waiting.len() > most {
            waiting.select_nth_unstable_by_key(most, |(place, _)| *place);
            waiting.truncate(most);
        }
        for (_, id) in &waiting {
            if let Some(open) = self.forget(*id) {
                open.task.abort();
            }
        }
        waiting.len()
    }

    fn forget(&mut self, id: Id) -> Option<Open> {
        let open = self.open.remove(&id)?;
        if let Some(count) = self.by_peer.get_mut(&open.peer) {
            *count -= 1;
            if *count == 0 {
                self.by_peer.remove(&open.peer);
            }
        }
        Some(open)
    }
}

/// Which connections count as those of one client: those of an address, or, since a host has as many IPv6 addresses as
/// it likes, of a /64 network.
pub(super) fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// What a connection is at.
#[derive(Debug)]
pub(super) struct Standing {
    epoch: Instant,
    /// Milliseconds after the epoch when it was accepted, or had its last answer.
    since: AtomicU64,
    /// Complete requests that are being answered.
    requests: AtomicU32,
    /// Whether a complete request was answered on it.
    has_served: AtomicBool,
}

impl Standing {
    fn new(epoch: Instant) -> Self {
        let standing = Self {
            epoch,
            since: AtomicU64::default(),
            requests: AtomicU32::default(),
            has_served: AtomicBool::default(),
        };
        standing.wait_from_now();
        standing
    }

    fn wait_from_now(&self) {
        let since = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(since, Ordering::Relaxed);
    }

    /// Its place among those that may be closed, the first of them first; `None` while a request is being answered.
    fn waiting(&self) -> Option<(bool, u64)> {
        let is_waiting = self.requests.load(Ordering::Acquire) == 0;
        is_waiting.then(|| (self.has_served.load(Ordering::Relaxed), self.since.load(Ordering::Relaxed)))
    }
}

/// A request on a connection, from its head to its answer.
#[derive(Debug)]
pub(super) struct Turn {
    standing: Arc<Standing>,
    is_complete: AtomicBool,
}

impl Turn {
    pub(super) fn new(standing: Arc<Standing>) -> Arc<Self> {
        Arc::new(Self { standing, is_complete: AtomicBool::new(false) })
    }

    /// The body has arrived.
    fn complete(&self) {
        if !self.is_complete.swap(true, Ordering::Relaxed) {
            self.standing.requests.fetch_add(1, Ordering::Release);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if *self.is_complete.get_mut() {
            self.standing.has_served.store(true, Ordering::Relaxed);
            self.standing.wait_from_now();
            self.standing.requests.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A body that says when it has arrived.
pub(super) struct Arriving<B> {
    body: B,
    turn: Arc<Turn>,
}

impl<B: HttpBody> Arriving<B> {
    pub(super) fn new(body: B, turn: Arc<Turn>) -> Self {
        if body.is_end_stream() {
            turn.complete();
        }
        Self { body, turn }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Arriving<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.turn.complete();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_address_or_a_network_of_ipv6() {
        let same = |a: &str, b: &str| peer(a.parse().unwrap()) == peer(b.parse().unwrap());
        assert!(same("192.0.2.1", "::ffff:192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
        assert!(same("2001:db8::1", "2001:db8::ffff:1:2:3") && !same("2001:db8::1", "2001:db8:0:1::1"));
    }

    /// Connections that stay until they are closed, by the order in which they come.
    fn open(connections: &mut Connections, peer: u8) -> Arc<Standing> {
        let mut kept = None;
        connections.add(IpAddr::from([127, 0, 0, peer]), |standing| {
            kept = Some(Arc::clone(&standing));
            std::future::pending()
        });
        kept.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_that_never_had_a_request_is_closed_first_and_one_that_is_served_never() {
        let mut connections = Connections::new();
        let mut all = Vec::new();
        for _ in 0..4 {
            all.push(open(&mut connections, 1));
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        let busy = Turn::new(Arc::clone(&all[0]));
        busy.complete();
        let idle = Turn::new(Arc::clone(&all[1]));
        idle.complete();
        drop(idle);
        let _stalled = Turn::new(Arc::clone(&all[2]));
        assert_eq!(connections.shed(None), 1);
        assert_eq!((connections.len(), connections.of(IpAddr::from([127, 0, 0, 1]))), (3, 3));
        assert!(
            !connections.open.values().any(|open| Arc::ptr_eq(&open.standing, &all[2])),
            "without a body"
        );
        for last in [3, 1] {
            assert_eq!(connections.shed(None), 1);
            assert!(!connections.open.values().any(|open| Arc::ptr_eq(&open.standing, &all[last])), "{last}");
        }
        assert_eq!((connections.shed(None), connections.len()), (0, 1));
    }

    #[tokio::test]
    async fn a_peer_gives_way_to_itself_alone() {
        let mut connections = Connections::new();
        let (_old, _mine) = (open(&mut connections, 1), open(&mut connections, 2));
        let me = IpAddr::from([127, 0, 0, 2]);
        assert_eq!((connections.shed(Some(me)), connections.of(me), connections.len()), (1, 0, 1));
        assert_eq!(connections.shed(Some(me)), 0);
        assert!(connections.ended().await.is_some(), "the one that was closed");
    }
}
