use throughline_store::Store;
use throughline_store::idempotency::{self, Claim, ClaimResult, Key, Scope};

use crate::databases::Db;
use crate::fixtures::{at, id};

pub(crate) fn claim(key: &str, number: i64, body: u8) -> Claim {
    Claim {
        key: Key { route: "one".to_owned(), scope: Scope::Open, key: key.to_owned() },
        request_id: id(number),
        fingerprint: [body; 32],
        expires_at: at(100),
    }
}

async fn claim_all(store: &Store, claims: &[Claim], now: i64) -> Vec<ClaimResult> {
    let transaction = store.begin().await.unwrap();
    let verdicts = idempotency::claim(&transaction, claims, at(now)).await.unwrap();
    transaction.commit().await.unwrap();
    verdicts
}

pub(crate) async fn a_key_repeats_for_the_same_body_and_conflicts_for_another(db: Db) {
    assert_eq!(claim_all(&db.store, &[claim("k", 1, 7)], 0).await, [ClaimResult::New]);
    assert_eq!(claim_all(&db.store, &[claim("k", 2, 7)], 1).await, [ClaimResult::Repeats(id(1))]);
    assert_eq!(claim_all(&db.store, &[claim("k", 3, 8)], 2).await, [ClaimResult::Conflicts]);
    assert_eq!(claim_all(&db.store, &[], 2).await, []);
}

pub(crate) async fn verdicts_come_in_the_order_of_the_claims(db: Db) {
    claim_all(&db.store, &[claim("m", 1, 7), claim("b\0", 2, 7)], 0).await;
    let claims = [claim("z", 10, 7), claim("m", 11, 8), claim("a", 12, 7), claim("b\0", 13, 7)];
    let verdicts = claim_all(&db.store, &claims, 1).await;
    assert_eq!(
        verdicts,
        [ClaimResult::New, ClaimResult::Conflicts, ClaimResult::New, ClaimResult::Repeats(id(2))]
    );
}

pub(crate) async fn an_expired_key_is_taken_over(db: Db) {
    claim_all(&db.store, &[claim("k", 1, 7)], 0).await;
    assert_eq!(claim_all(&db.store, &[claim("k", 2, 8)], 99).await, [ClaimResult::Conflicts]);
    let later = Claim { expires_at: at(200), ..claim("k", 3, 8) };
    assert_eq!(claim_all(&db.store, &[later], 100).await, [ClaimResult::New]);
    assert_eq!(claim_all(&db.store, &[claim("k", 4, 8)], 199).await, [ClaimResult::Repeats(id(3))]);
}

pub(crate) async fn only_expired_keys_are_purged_up_to_the_limit(db: Db) {
    let long = Claim { expires_at: at(200), ..claim("l", 9, 7) };
    claim_all(&db.store, &[claim("a", 1, 7), claim("b", 2, 7), claim("c", 3, 7), long], 0).await;
    let purge = async |at_second, limit| {
        idempotency::purge(db.store.connection(), at(at_second), limit).await.unwrap()
    };
    assert_eq!(purge(99, 10).await, 0);
    assert_eq!((purge(100, 2).await, purge(100, 10).await, purge(100, 10).await), (2, 1, 0));
    assert_eq!(claim_all(&db.store, &[claim("l", 10, 7)], 100).await, [ClaimResult::Repeats(id(9))]);
}

pub(crate) async fn a_key_belongs_to_its_route_and_its_client(db: Db) {
    let scopes = [Scope::Client("shop".to_owned()), Scope::Client("crm".to_owned())];
    // One has the name that the scope of no client has in the database.
    let names = ["open", ""].map(|name| Scope::Client(name.to_owned()));
    let scopes: Vec<_> = scopes.into_iter().chain(names).chain([Scope::Open]).collect();
    let routes = ["one", "two"].map(str::to_owned);
    let keys = routes.iter().flat_map(|route| {
        let key = |scope: &Scope| Key { route: route.clone(), scope: scope.clone(), key: "k".to_owned() };
        scopes.iter().map(key)
    });
    let claims = |first: i64| {
        let claim = |(number, key)| Claim { key, ..claim("", number, 7) };
        (first..).zip(keys.clone()).map(claim).collect::<Vec<_>>()
    };
    let all = claims(1).len();
    // One after the other, and then together: each finds its own.
    for claim in claims(1) {
        assert_eq!(
            claim_all(&db.store, std::slice::from_ref(&claim), 0).await,
            [ClaimResult::New],
            "{claim:?}"
        );
    }
    let repeated: Vec<_> = (1..).take(all).map(|number| ClaimResult::Repeats(id(number))).collect();
    assert_eq!(claim_all(&db.store, &claims(100), 1).await, repeated);
}

pub(crate) async fn a_claim_that_is_rolled_back_leaves_the_key_free(db: Db) {
    let transaction = db.store.begin().await.unwrap();
    idempotency::claim(&transaction, &[claim("k", 1, 7)], at(0)).await.unwrap();
    drop(transaction);
    assert_eq!(claim_all(&db.store, &[claim("k", 2, 8)], 0).await, [ClaimResult::New]);
}
