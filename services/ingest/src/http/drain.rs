//! Discards bodies that no handler read, because the request was refused by its head.
//!
//! A server that closes a connection on which the client still sends discards the answer with it: the client sees a
//! broken connection and never learns the reason. So the rest of the body is read, within limits, before the answer is
//! sent.

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

/// Maximum number of bytes to discard: somewhat more than a client sends by mistake.
const MOST: usize = 16 << 20;
/// Maximum time to discard a body.
const LONGEST: Duration = Duration::from_secs(2);

/// Reads the part of the body that the handler did not read.
pub(super) async fn discard(request: Request, next: Next) -> Response {
    let (lender, mut back) = oneshot::channel();
    let request = request.map(|body| Body::new(Lent { body, lender: Some(lender) }));
    let response = next.run(request).await;
    if let Ok(body) = back.try_recv() {
        // A client that sends endlessly, or nothing, is cut off nevertheless.
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

/// A body that is returned to its lender when it is dropped before its end.
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
            // Without a receiver, the connection is closed.
            let _ = lender.send(std::mem::take(&mut self.body));
        }
    }
}
