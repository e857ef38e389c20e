//! Bodies that nobody read: a request that is refused by its head.
//!
//! Who closes a connection on which the client still sends, takes back the answer with it: the client sees a
//! broken connection and never learns what was wrong. So the rest of the body is read, within bounds, before
//! the answer goes out.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Most that is read for nothing, in bytes: some way beyond what a client sends by mistake.
const MOST: usize = 16 << 20;
/// Longest that is read for nothing.
const LONGEST: Duration = Duration::from_secs(2);

/// Reads what the handler left of the body.
pub(super) async fn discard(request: Request, next: Next) -> Response {
    let (lender, mut back) = oneshot::channel();
    let request = request.map(|body| Body::new(Lent { body, lender: Some(lender) }));
    let response = next.run(request).await;
    if let Ok(body) = back.try_recv() {
        // Who sends on and on, or nothing, is cut off all the same.
        let _ = timeout(LONGEST, read(body)).await;
    }
    response
}

async fn read(mut body: Body) {
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
        if length > MOST {
            return;
        }
    }
}

/// A body that is given back when it is dropped before its end.
struct Lent {
    body: Body,
    lender: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(lender) = self.lender.take().filter(|_| !self.body.is_end_stream()) {
            // Without a receiver the connection is gone.
            let _ = lender.send(std::mem::take(&mut self.body));
        }
    }
}
