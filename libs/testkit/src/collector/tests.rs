//! What an exporter sees of it is tested with telemetry, which exports; here, who may not come in.

use std::net::TcpStream;

use super::*;

#[test]
fn a_closed_collector_refuses_connections_until_it_is_opened_again() {
    let mut collector = Collector::open().unwrap();
    let _connected = TcpStream::connect(collector.address).unwrap();
    collector.close();
    TcpStream::connect(collector.address).unwrap_err();
    collector.reopen().unwrap();
    TcpStream::connect(collector.address).unwrap();
}

#[test]
fn what_has_not_come_is_an_error() {
    let collector = Collector::open().unwrap();
    assert!(collector.value("throughline.attempts", &[]).is_err());
}
