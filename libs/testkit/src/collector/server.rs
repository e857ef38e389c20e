use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request as AnyRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response as AnyResponse};
use axum::routing::{MethodRouter, post, post_service};
use axum::serve::Listener;
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::{Request, Response, Status};

use super::received::{logs, metrics, spans};
use super::{Export, Kept, lock};

/// Serves until the future is dropped. Its connections end only when the runtime is dropped too.
pub(super) async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    match tls {
        Some(acceptor) => axum::serve(Secured { listener, acceptor }, router).await,
        None => axum::serve(listener, router).await,
    }
}

/// Builds a router for both protocols: gRPC is HTTP with its own paths.
pub(super) fn router(kept: Arc<Kept>, is_hanging: watch::Receiver<bool>) -> Router {
    let traces = TraceServiceServer::from_arc(Arc::clone(&kept)).accept_compressed(Gzip);
    let logs = LogsServiceServer::from_arc(Arc::clone(&kept)).accept_compressed(Gzip);
    let metrics = MetricsServiceServer::from_arc(Arc::clone(&kept)).accept_compressed(Gzip);
    let shared = Shared { kept: Arc::clone(&kept), is_hanging };
    Router::new()
        .route("/v1/traces", over_http(Kept::take_traces))
        .route("/v1/logs", over_http(Kept::take_logs))
        .route("/v1/metrics", over_http(Kept::take_metrics))
        .route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", post_service(traces))
        .route("/opentelemetry.proto.collector.logs.v1.LogsService/Export", post_service(logs))
        .route("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", post_service(metrics))
        .with_state(kept)
        .layer(middleware::from_fn_with_state(shared, receive))
        .layer(DefaultBodyLimit::disable())
}

/// The state of the middleware that every request passes.
#[derive(Clone)]
struct Shared {
    kept: Arc<Kept>,
    is_hanging: watch::Receiver<bool>,
}

async fn receive(State(mut shared): State<Shared>, request: AnyRequest, next: Next) -> AnyResponse {
    // An error means that the collector was dropped, and no response is needed.
    let _ = shared.is_hanging.wait_for(|is_hanging| !is_hanging).await;
    let (path, headers) = (request.uri().path().to_owned(), request.headers().clone());
    lock(&shared.kept.exports).push(Export { path, headers });
    next.run(request).await
}

fn over_http<T: Message + Default + 'static>(take: fn(&Kept, T)) -> MethodRouter<Arc<Kept>> {
    post(async move |State(kept): State<Arc<Kept>>, headers: HeaderMap, body: Bytes| {
        match decode(&headers, &body) {
            Ok(message) => {
                take(&kept, message);
                // The empty message, which means that everything was accepted.
                ([(header::CONTENT_TYPE, "application/x-protobuf")], "").into_response()
            }
            Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        }
    })
}

fn decode<T: Message + Default>(headers: &HeaderMap, body: &[u8]) -> anyhow::Result<T> {
    if headers.get(header::CONTENT_ENCODING).is_none_or(|encoding| encoding != "gzip") {
        return Ok(T::decode(body)?);
    }
    let mut plain = Vec::new();
    GzDecoder::new(body).read_to_end(&mut plain)?;
    Ok(T::decode(&plain[..])?)
}

impl Kept {
    fn take_traces(&self, message: ExportTraceServiceRequest) {
        lock(&self.spans).extend(spans(message.resource_spans));
    }

    fn take_logs(&self, message: ExportLogsServiceRequest) {
        lock(&self.logs).extend(logs(message.resource_logs));
    }

    fn take_metrics(&self, message: ExportMetricsServiceRequest) {
        self.keep_metrics(metrics(message.resource_metrics));
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take_traces(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Kept {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.take_logs(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Kept {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.take_metrics(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// A listener that returns connections after their TLS handshake.
struct Secured {
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Secured {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // If the handshake fails, the connection is closed, and the client sees the reason.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
