//! The open connections, and which of them to close when there are too many.
//!
//! A connection with a complete request is never closed for another. A connection that is silent, has sent a part of a
//! head or of a body, or is idle between two requests is closed when another connection needs its slot: a client that
//! opens connections and sends nothing must not keep others out.

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

/// One in this many connections is closed at a time: many new connections then share the cost of the scan of all
/// connections.
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
    state: Arc<ConnectionState>,
    task: AbortHandle,
}

impl Connections {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), open: HashMap::new(), by_peer: HashMap::new(), epoch: Instant::now() }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Returns the number of connections of a peer.
    pub(super) fn of(&self, peer: IpAddr) -> usize {
        self.by_peer.get(&peer).copied().unwrap_or_default()
    }

    /// Adds a connection; the future that `serve` makes from its state serves it.
    pub(super) fn add<F>(&mut self, peer: IpAddr, serve: impl FnOnce(Arc<ConnectionState>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let state = Arc::new(ConnectionState::new(self.epoch));
        let task = self.tasks.spawn(serve(Arc::clone(&state)));
        self.open.insert(task.id(), Open { peer, state, task });
        *self.by_peer.entry(peer).or_default() += 1;
    }

    /// Waits for a connection to end; returns `None` if there is none.
    pub(super) async fn ended(&mut self) -> Option<()> {
        let id = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        self.forget(id);
        Some(())
    }

    /// Closes some of the connections that have no complete request, of one peer or of all: first those that never had
    /// one, the oldest first. Returns how many it closed.
    pub(super) fn shed(&mut self, peer: Option<IpAddr>) -> usize {
        let of_peer = |open: &&Open| peer.is_none_or(|peer| open.peer == peer);
        let candidate = |open: &Open| Some((open.state.waiting()?, open.task.id()));
        let mut waiting: Vec<_> = self.open.values().filter(of_peer).filter_map(candidate).collect();
        let all = peer.map_or(self.len(), |peer| self.of(peer));
        let most = (all / SHARE).max(1);
        if waiting.len() > most {
            waiting.select_nth_unstable_by_key(most, |(rank, _)| *rank);
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

/// Returns the peer to which an address belongs: the address itself or, because a host can use any number of IPv6
/// addresses, its /64 network.
pub(super) fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// The state of a connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    epoch: Instant,
    /// Milliseconds from the epoch until it was accepted, or until its last answer.
    waiting_since: AtomicU64,
    /// The number of complete requests in progress.
    requests: AtomicU32,
    /// Whether a complete request was answered on the connection.
    has_served: AtomicBool,
}

impl ConnectionState {
    fn new(epoch: Instant) -> Self {
        let state = Self {
            epoch,
            waiting_since: AtomicU64::default(),
            requests: AtomicU32::default(),
            has_served: AtomicBool::default(),
        };
        state.wait_from_now();
        state
    }

    fn wait_from_now(&self) {
        let waiting_since = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.waiting_since.store(waiting_since, Ordering::Relaxed);
    }

    /// Returns its rank among the connections that may be closed, the lowest first; `None` while a request is in
    /// progress.
    fn waiting(&self) -> Option<(bool, u64)> {
        let is_waiting = self.requests.load(Ordering::Acquire) == 0;
        is_waiting
            .then(|| (self.has_served.load(Ordering::Relaxed), self.waiting_since.load(Ordering::Relaxed)))
    }
}

/// A request on a connection, from its head to its answer.
#[derive(Debug)]
pub(super) struct ActiveRequest {
    state: Arc<ConnectionState>,
    is_complete: AtomicBool,
}

impl ActiveRequest {
    pub(super) fn new(state: Arc<ConnectionState>) -> Arc<Self> {
        Arc::new(Self { state, is_complete: AtomicBool::new(false) })
    }

    /// Marks the request as complete: its body has arrived.
    fn complete(&self) {
        if !self.is_complete.swap(true, Ordering::Relaxed) {
            self.state.requests.fetch_add(1, Ordering::Release);
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if *self.is_complete.get_mut() {
            self.state.has_served.store(true, Ordering::Relaxed);
            self.state.wait_from_now();
            self.state.requests.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A body that reports when it has arrived.
pub(super) struct Arriving<B> {
    body: B,
    active_request: Arc<ActiveRequest>,
}

impl<B: HttpBody> Arriving<B> {
    pub(super) fn new(body: B, active_request: Arc<ActiveRequest>) -> Self {
        if body.is_end_stream() {
            active_request.complete();
        }
        Self { body, active_request }
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
            self.active_request.complete();
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
    fn a_peer_is_an_ipv4_address_or_an_ipv6_network() {
        let same = |a: &str, b: &str| peer(a.parse().unwrap()) == peer(b.parse().unwrap());
        assert!(same("192.0.2.1", "::ffff:192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
        assert!(same("2001:db8::1", "2001:db8::ffff:1:2:3") && !same("2001:db8::1", "2001:db8:0:1::1"));
    }

    /// Connections that stay until they are closed, by the order in which they come.
    fn open(connections: &mut Connections, peer: u8) -> Arc<ConnectionState> {
        let mut kept = None;
        connections.add(IpAddr::from([127, 0, 0, peer]), |state| {
            kept = Some(Arc::clone(&state));
            std::future::pending()
        });
        kept.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_connection_without_a_request_closes_first_and_a_busy_one_never() {
        let mut connections = Connections::new();
        let mut all = Vec::new();
        for number in 0..4 {
            all.push(open(&mut connections, 1));
            if number == 1 {
                // Idle for longer than the others are open.
                ActiveRequest::new(Arc::clone(&all[number])).complete();
            }
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        let busy = ActiveRequest::new(Arc::clone(&all[0]));
        busy.complete();
        let _stalled = ActiveRequest::new(Arc::clone(&all[2]));
        assert_eq!(connections.shed(None), 1);
        assert_eq!((connections.len(), connections.of(IpAddr::from([127, 0, 0, 1]))), (3, 3));
        assert!(!connections.open.values().any(|open| Arc::ptr_eq(&open.state, &all[2])), "without a body");
        for last in [3, 1] {
            assert_eq!(connections.shed(None), 1);
            assert!(!connections.open.values().any(|open| Arc::ptr_eq(&open.state, &all[last])), "{last}");
        }
        assert_eq!((connections.shed(None), connections.len()), (0, 1));
    }

    #[tokio::test]
    async fn shedding_for_a_peer_closes_only_its_own_connections() {
        let mut connections = Connections::new();
        let (_old, _mine) = (open(&mut connections, 1), open(&mut connections, 2));
        let me = IpAddr::from([127, 0, 0, 2]);
        assert_eq!((connections.shed(Some(me)), connections.of(me), connections.len()), (1, 0, 1));
        assert_eq!(connections.shed(Some(me)), 0);
        assert!(connections.ended().await.is_some(), "the one that was closed");
    }
}
