use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::{join, join_all};
use throughline_token::{OAuth2, TokenError};
use tokio::time::Instant;
use wiremock::ResponseTemplate;

use crate::support::{Endpoint, Gate, eventually, go_on, pass_until, stop_at, text, tokens};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn two_hundred_callers_share_one_request() {
    let ((mut gate, oauth2), tokens) = (Gate::shut().await, tokens());
    let everybody = join_all((0..200).map(|_| tokens.get(&oauth2)));
    let open = async {
        gate.arrival().await;
        gate.let_through();
    };
    // All of them are there before the gate is: each was polled when the request was made.
    let (got, ()) = join(everybody, open).await;
    let got: BTreeSet<_> = got.into_iter().map(text).collect();
    assert_eq!(got, BTreeSet::from(["t-1".to_owned()]));
    assert_eq!(text(tokens.get(&oauth2).await), "t-1");
    assert!(!gate.has_another());
}

#[tokio::test]
async fn a_token_is_used_until_half_a_minute_or_a_tenth_before_its_end() {
    for (lifetime, usable) in [(3600, 3570), (300, 270), (299, 269), (60, 54), (10, 9)] {
        let endpoint = Endpoint::granting(lifetime).await;
        let oauth2 = endpoint.oauth2();

        let (before, started) = (tokens(), Instant::now());
        text(before.get(&oauth2).await);
        stop_at(started, (usable - 1) * SECOND).await;
        assert_eq!(text(before.get(&oauth2).await), "t-1", "of {lifetime} s");
        go_on();
        drop(before);

        let endpoint = Endpoint::granting(lifetime).await;
        let (oauth2, after, started) = (endpoint.oauth2(), tokens(), Instant::now());
        text(after.get(&oauth2).await);
        pass_until(started, (usable + 1) * SECOND).await;
        assert_eq!(text(after.get(&oauth2).await), "t-2", "of {lifetime} s");
    }
}

#[tokio::test]
async fn a_token_that_expires_soon_is_renewed_once_while_callers_get_the_old_one() {
    let (endpoint, tokens, started) = (Endpoint::granting(3600).await, tokens(), Instant::now());
    let oauth2 = endpoint.oauth2();
    text(tokens.get(&oauth2).await);

    pass_until(started, 2870 * SECOND).await;
    assert_eq!(text(tokens.get(&oauth2).await), "t-1");
    assert_eq!(endpoint.asked().await, 1, "four fifths of its lifetime are not yet over");

    pass_until(started, 2881 * SECOND).await;
    let got = join_all((0..200).map(|_| tokens.get(&oauth2))).await;
    assert!(got.into_iter().all(|got| text(got) == "t-1"));
    eventually("the new token is used", async || text(tokens.get(&oauth2).await) == "t-2").await;
    assert_eq!(endpoint.asked().await, 2);
}

#[tokio::test]
async fn an_unused_token_is_not_renewed() {
    let (endpoint, tokens, started) = (Endpoint::granting(3600).await, tokens(), Instant::now());
    text(tokens.get(&endpoint.oauth2()).await);
    pass_until(started, 10_000 * SECOND).await;
    assert_eq!(endpoint.asked().await, 1);
    assert_eq!(text(tokens.get(&endpoint.oauth2()).await), "t-2");
}

#[tokio::test]
async fn a_token_discarded_by_several_callers_is_replaced_once() {
    let (endpoint, tokens) = (Endpoint::granting(3600).await, tokens());
    let oauth2 = endpoint.oauth2();
    let old = tokens.get(&oauth2).await.unwrap();
    tokens.discard(&oauth2, &old).await;
    assert_eq!(text(tokens.get(&oauth2).await), "t-2");
    tokens.discard(&oauth2, &old).await;
    assert_eq!(text(tokens.get(&oauth2).await), "t-2", "the old one is no longer cached");
    assert_eq!(endpoint.asked().await, 2);
}

#[tokio::test]
async fn a_caller_that_stops_waiting_does_not_stop_the_request_for_the_others() {
    let ((mut gate, oauth2), tokens) = (Gate::shut().await, tokens());
    let mut impatient = Box::pin(tokens.get(&oauth2));
    let mut patient = Box::pin(tokens.get(&oauth2));
    tokio::select! {
        biased;
        _ = &mut impatient => panic!("the gate is shut"),
        _ = &mut patient => panic!("the gate is shut"),
        () = gate.arrival() => {}
    }
    drop(impatient);
    let (got, ()) = join(patient, async { gate.let_through() }).await;
    assert_eq!(text(got), "t-1");
    assert!(!gate.has_another());
}

#[tokio::test]
async fn a_request_without_callers_continues_and_fills_the_cache() {
    let ((mut gate, oauth2), tokens) = (Gate::shut().await, tokens());
    tokio::select! {
        biased;
        _ = tokens.get(&oauth2) => panic!("the gate is shut"),
        () = gate.arrival() => {}
    }
    gate.let_through();
    assert_eq!(text(tokens.get(&oauth2).await), "t-1");
    assert!(!gate.has_another());
}

#[tokio::test]
async fn a_failure_is_shared_by_all_callers_within_a_second() {
    let endpoint = Endpoint::answering(3600, vec![Some(ResponseTemplate::new(500)), None]).await;
    let (oauth2, tokens, started) = (endpoint.oauth2(), tokens(), Instant::now());
    let got = join_all((0..200).map(|_| tokens.get(&oauth2))).await;
    assert!(got.into_iter().all(|got| matches!(got, Err(TokenError::Refused { .. }))));
    assert!(matches!(tokens.get(&oauth2).await, Err(TokenError::Refused { .. })));
    assert_eq!(endpoint.asked().await, 1);
    pass_until(started, 10 * SECOND).await;
    assert_eq!(text(tokens.get(&oauth2).await), "t-2");
}

#[tokio::test]
async fn a_token_without_a_lifetime_serves_only_the_callers_that_waited_for_it() {
    let (endpoint, tokens) = (Endpoint::granting(0).await, tokens());
    let oauth2 = endpoint.oauth2();
    let got = join_all((0..20).map(|_| tokens.get(&oauth2))).await;
    assert!(got.into_iter().all(|got| text(got) == "t-1"));
    assert_eq!(text(tokens.get(&oauth2).await), "t-2");
}

#[tokio::test]
async fn clients_and_scopes_have_tokens_of_their_own_and_clones_share_them() {
    let (endpoint, tokens) = (Endpoint::granting(3600).await, tokens());
    let one = endpoint.oauth2();
    let other = OAuth2 { scope: Some("write".to_owned()), ..one.clone() };
    assert_eq!(text(tokens.get(&one).await), "t-1");
    assert_eq!(text(tokens.get(&other).await), "t-2");
    tokens.discard(&other, &tokens.get(&one).await.unwrap()).await;
    assert_eq!(text(tokens.clone().get(&one).await), "t-1");
    assert_eq!(text(tokens.clone().get(&other).await), "t-2");
}
