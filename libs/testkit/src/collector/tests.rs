//! Tests of a closed collector and of metrics that were not received. The tests of telemetry cover the exports
//! themselves.

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
fn missing_telemetry_is_an_error() {
    let collector = Collector::open().unwrap();
    assert!(collector.value("throughline.attempts", &[]).is_err());
}
