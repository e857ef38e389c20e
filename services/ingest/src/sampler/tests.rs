//! The sampler alone, round by round.

use throughline_store::{ConnectionTrait as _, nodes};
use throughline_testkit::{Measured, sqlite};

use super::*;

struct Harness {
    _folder: tempfile::TempDir,
    store: Store,
    measured: Measured,
}

impl Harness {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let measured = Measured::new();
        let store = sqlite(folder.path(), &measured.meter()).await.unwrap();
        Self { _folder: folder, store, measured }
    }

    async fn lease(&self) -> nodes::Lease {
        let ttl = Duration::from_hours(1);
        nodes::acquire(&self.store, "a replica", ttl, &NodeId::ALL).await.unwrap().unwrap()
    }

    fn sampler(&self, node: NodeId, meter: &Meter) -> Sampler {
        let (ids, destinations) = (NodeIds { first: 0, last: 1023 }, vec!["three".to_owned()]);
        Sampler::new(self.store.clone(), Clock::system(), node, ids, destinations, Shutdown::new(), meter)
    }

    /// Returns the gauges that are exported, out of one for each sample.
    fn gauges(&self) -> Vec<&'static str> {
        let all = [
            "throughline.publisher.lag.age",
            "throughline.nodes.leased",
            "throughline.deliveries.due.age",
            "throughline.deliveries.open.age",
            "throughline.dead_letters.waiting",
        ];
        all.into_iter().filter(|name| self.measured.value(name, &[]).is_ok()).collect()
    }
}

#[tokio::test]
async fn a_failed_sample_affects_no_other() {
    let harness = Harness::new().await;
    let sampler = harness.sampler(harness.lease().await.node, &harness.measured.meter());
    let mut is_first = false;
    sampler.look(&mut is_first).await;
    assert_eq!(harness.gauges().len(), 5);
    let rename = async |from, to| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        harness.store.connection().execute_unprepared(&sql).await.unwrap();
    };
    rename("nodes", "renamed").await;
    sampler.look(&mut is_first).await;
    assert_eq!(
        harness.gauges(),
        [
            "throughline.publisher.lag.age",
            "throughline.deliveries.due.age",
            "throughline.deliveries.open.age",
            "throughline.dead_letters.waiting",
        ]
    );
    rename("renamed", "nodes").await;
    rename("outbox", "renamed").await;
    sampler.look(&mut is_first).await;
    assert_eq!(
        harness.gauges(),
        ["throughline.nodes.leased", "throughline.deliveries.open.age", "throughline.dead_letters.waiting"]
    );
    rename("renamed", "outbox").await;
    sampler.look(&mut is_first).await;
    assert_eq!(harness.gauges().len(), 5);
}

#[tokio::test]
async fn one_replica_takes_shared_samples_and_another_when_its_lease_ends() {
    let harness = Harness::new().await;
    let (first, second) = (harness.lease().await, harness.lease().await);
    assert!(first.node < second.node);
    let sampler = harness.sampler(second.node, &harness.measured.meter());
    let mut is_first = true;
    sampler.look(&mut is_first).await;
    assert_eq!(harness.gauges(), ["throughline.publisher.lag.age", "throughline.nodes.leased"]);
    nodes::release(harness.store.connection(), &first, "a replica").await.unwrap();
    sampler.look(&mut is_first).await;
    assert_eq!(harness.gauges().len(), 5);
}
