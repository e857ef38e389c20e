use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Client, StatusCode};

/// How long the healthcheck waits. A service needs at most 2 s to determine whether it is ready.
const DEADLINE: Duration = Duration::from_secs(4);

/// Why a service is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The service does not answer, or not in time.
    #[error("no response from {url}")]
    Silent {
        /// The requested URL.
        url: String,
        /// The error of the request.
        source: reqwest::Error,
    },
    /// The service reports that it is not ready.
    #[error("not ready: {url} responded {status} {report}")]
    Unready {
        /// The requested URL.
        url: String,
        /// The status of the response.
        status: StatusCode,
        /// The body of the response: the dependencies that are down.
        report: String,
    },
}

/// Asks the service on this machine that listens at `address` whether it is ready. For the health checks of containers,
/// since their images contain no other program that could send the request.
///
/// # Errors
/// [`NotReady`] if the service is not ready or does not answer.
pub async fn healthcheck(address: SocketAddr) -> Result<(), NotReady> {
    let url = format!("http://{}/readyz", reachable(address));
    let asked = async {
        let client = Client::builder().no_proxy().timeout(DEADLINE).build()?;
        let answer = client.get(&url).send().await?;
        Ok((answer.status(), answer.text().await?))
    };
    match asked.await {
        Ok((status, _)) if status.is_success() => Ok(()),
        Ok((status, report)) => Err(NotReady::Unready { url, status, report }),
        Err(source) => Err(NotReady::Silent { url, source }),
    }
}

/// Returns the loopback address for a service that listens on all addresses.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::path;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    async fn service(answer: ResponseTemplate) -> MockServer {
        let server = MockServer::start().await;
        Mock::given(path("/readyz")).respond_with(answer).mount(&server).await;
        server
    }

    #[tokio::test]
    async fn a_service_that_is_ready_is_healthy_also_when_it_listens_everywhere() {
        let service = service(ResponseTemplate::new(200)).await;
        let port = service.address().port();
        healthcheck(*service.address()).await.unwrap();
        healthcheck((Ipv4Addr::UNSPECIFIED, port).into()).await.unwrap();
        assert_eq!(reachable((Ipv6Addr::UNSPECIFIED, port).into()), (Ipv6Addr::LOCALHOST, port).into());
    }

    #[tokio::test]
    async fn an_unready_service_says_why() {
        let report = r#"{"status":"unready","broker":"down"}"#;
        let service = service(ResponseTemplate::new(503).set_body_string(report)).await;
        let why = healthcheck(*service.address()).await.unwrap_err().to_string();
        assert!(why.contains("503") && why.contains(report), "{why}");
    }

    #[tokio::test]
    async fn an_address_without_a_listener_is_unhealthy() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(matches!(healthcheck(address).await, Err(NotReady::Silent { .. })));
    }
}
