use bytes::Bytes;
use chrono::{DateTime, TimeDelta};
use throughline_api::DeliveryState;
use throughline_messages::{ErrorClass, Outcome, TraceContext};
use throughline_store::{Adopted, NewRequest, OutboxRequest, StoredRequest, outbox, outcomes, requests};
use throughline_testkit::{lease, leased};

use crate::databases::Db;
use crate::fixtures::{at, delivery, id, insert, node, rejected, report, request, status};

pub(crate) async fn bodies_are_read_back_byte_for_byte(db: Db) {
    let bodies = [
        Bytes::new(),
        Bytes::from_static(b" {\"b\":1.0,\"a\":1e400,\"a\":\"\\u0041\\u0000\"}\n"),
        (0..=255_u8).collect(),
        Bytes::from(vec![b'x'; 1 << 20]),
    ];
    let new: Vec<_> = (1..)
        .zip(&bodies)
        .map(|(number, body)| NewRequest { body: body.clone(), ..request(number) })
        .collect();
    insert(&db.store, &new).await;
    let pending = outbox::pending(db.store.connection(), node(1), None, 10, u64::MAX).await.unwrap();
    assert!(pending.iter().map(|request| &request.body).eq(&bodies));
}

pub(crate) async fn texts_and_times_are_read_back_unchanged(db: Db) {
    let texts =
        ["", "NULL", "null", "{\"a\",\\b}", "ü — 語 \u{1f980}", " \t\n", "'; DROP TABLE requests; --"];
    let new: Vec<_> = (1..)
        .zip(texts)
        .map(|(number, text)| NewRequest {
            route: text.to_owned(),
            ordering_key: (number % 2 == 0).then(|| text.to_owned()),
            headers: vec![(text.to_owned(), text.to_owned())],
            trace: (number % 2 == 1)
                .then(|| TraceContext { traceparent: text.to_owned(), tracestate: Some(text.to_owned()) }),
            accepted_at: at(0) + TimeDelta::microseconds(number),
            destinations: Vec::new(),
            ..request(number)
        })
        .collect();
    insert(&db.store, &new).await;
    let expected: Vec<OutboxRequest> = new.iter().cloned().map(OutboxRequest::from).collect();
    assert_eq!(outbox::pending(db.store.connection(), node(1), None, 10, u64::MAX).await.unwrap(), expected);
    for request in new {
        assert_eq!(status(&db.store, request.id.as_i64()).await.request.headers, request.headers);
    }
}

pub(crate) async fn a_status_shows_the_request_its_deliveries_and_their_attempts(db: Db) {
    let destinations = vec!["three".to_owned(), "another".to_owned()];
    let new = NewRequest {
        destinations,
        ordering_key: Some("k".to_owned()),
        client: Some("shop".to_owned()),
        origin: Some(Adopted { origin: "one-requests/0/41".parse().unwrap(), identity: [7; 32] }),
        ..request(1)
    };
    insert(&db.store, std::slice::from_ref(&new)).await;
    outcomes::record(db.store.connection(), &[report(1, 1, rejected())], at(5)).await.unwrap();

    let status = status(&db.store, 1).await;
    let NewRequest { id, route, ordering_key, content_type, headers, trace, accepted_at, .. } = new;
    let (client, origin) = (Some("shop".to_owned()), Some("one-requests/0/41".to_owned()));
    let body_bytes = new.body.len() as u64;
    let expected = StoredRequest {
        id,
        route,
        ordering_key,
        content_type,
        body_bytes,
        headers,
        trace,
        client,
        origin,
        accepted_at,
    };
    assert_eq!(status.request, expected);
    let adopted = requests::adopted(db.store.connection(), &[[6; 32], [7; 32]]).await.unwrap();
    assert_eq!(adopted.into_iter().collect::<Vec<_>>(), [([7; 32], id)]);
    let [another, three] = status.deliveries.as_slice() else { panic!("{status:?}") };
    assert_eq!((another.destination.as_str(), another.state), ("another", DeliveryState::Pending));
    assert_eq!((another.due_at, another.updated_at), (Some(at(900)), at(0)));
    assert_eq!((another.window_started_at, another.published_at), (at(0), Some(at(0))));
    assert_eq!(another.attempts, []);
    assert_eq!((three.destination.as_str(), three.state), ("three", DeliveryState::Dead));
    let [attempt] = three.attempts.as_slice() else { panic!("{three:?}") };
    assert_eq!((attempt.number, attempt.started_at, attempt.duration_ms), (1, at(1), 12));
    assert_eq!((attempt.outcome.as_str(), attempt.status), ("dead", Some(400)));
    assert_eq!(attempt.error_class, Some(ErrorClass::ClientError));
    assert_eq!(attempt.error.as_deref(), Some("400 Bad Request"));
    assert_eq!(attempt.response_excerpt.as_deref(), Some("{\"said\": \"no\"}"));
    assert_eq!(attempt.trace_id.as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(attempt.origin.as_deref(), Some("throughline.retries/2/17"));
}

pub(crate) async fn an_unknown_request_has_no_status(db: Db) {
    assert_eq!(requests::find(db.store.connection(), id(1)).await.unwrap(), None);
}

/// More rows than either database binds parameters.
pub(crate) async fn a_batch_may_be_large(db: Db) {
    let new: Vec<_> = (1..=10_000).map(request).collect();
    insert(&db.store, &new).await;
    let reports: Vec<_> = (1..=10_000).map(|number| report(number, 1, Outcome::Delivered)).collect();
    let transaction = db.store.begin().await.unwrap();
    assert_eq!(outcomes::record(&transaction, &reports, at(5)).await.unwrap().unknown, []);
    transaction.commit().await.unwrap();
    assert_eq!(delivery(&db.store, 10_000).await.state, DeliveryState::Delivered);
    let ids: Vec<_> = new.iter().map(|request| request.id).collect();
    outbox::remove(db.store.connection(), &ids).await.unwrap();
    assert_eq!(outbox::oldest(db.store.connection(), node(1)).await.unwrap(), None);
}

pub(crate) async fn a_duplicate_id_fails_the_batch_permanently(db: Db) {
    insert(&db.store, &[request(2)]).await;
    let transaction = db.store.begin().await.unwrap();
    let error = requests::insert(&transaction, &lease(node(1)), &[request(1), request(2)])
        .await
        .expect_err("2 is taken");
    assert!(!error.is_unavailable(), "{error}");
    drop(transaction);
    assert_eq!(requests::find(db.store.connection(), id(1)).await.unwrap(), None);
}

pub(crate) async fn a_rollback_leaves_nothing(db: Db) {
    let lease = leased(&db.store, node(1)).await.unwrap();
    let transaction = db.store.begin().await.unwrap();
    requests::insert(&transaction, &lease, &[request(1)]).await.unwrap();
    drop(transaction);
    assert_eq!(requests::find(db.store.connection(), id(1)).await.unwrap(), None);
    assert_eq!(outbox::oldest(db.store.connection(), node(1)).await.unwrap(), None);
    // The Unix epoch and what comes before it are times as well.
    let old = NewRequest { accepted_at: DateTime::UNIX_EPOCH - TimeDelta::microseconds(1), ..request(1) };
    insert(&db.store, std::slice::from_ref(&old)).await;
    assert_eq!(status(&db.store, 1).await.request.accepted_at, old.accepted_at);
}
