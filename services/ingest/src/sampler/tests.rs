//! The sampler alone, look by look.

use throughline_config::{Database, Secret};
use throughline_store::{ConnectionTrait as _, nodes};
use throughline_testkit::Measured;

use super::*;

struct Scene {
    _folder: tempfile::TempDir,
    store: Store,
    measured: Measured,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = Secret::from(format!("sqlite://{}", folder.path().join("throughline.db").display()));
        let measured = Measured::new();
        let settings = Database { url, ..Database::default() };
        let store = Store::connect(&settings, &measured.meter()).await.unwrap();
        store.migrate().await.unwrap();
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

    /// Which gauges there are, of one for each sample.
    fn gauges(&self) -> Vec<&'static str> {
        let all = [
            "throughline.publisher.lag.age",
            "throughline.nodes.leased",
            "throughline.deliveries.due.age",
            "throughline.deliveries.unended.age",
            "throughline.dead_letters.waiting",
        ];
        all.into_iter().filter(|name| self.measured.value(name, &[]).is_ok()).collect()
    }
}

#[tokio::test]
async fn a_sample_that_fails_takes_no_other_with_it() {
    let scene = Scene::new().await;
    let sampler = scene.sampler(scene.lease().await.node, &scene.measured.meter());
    let mut is_first = false;
    sampler.look(&mut is_first).await;
    assert_eq!(scene.gauges().len(), 5);
    let rename = async |from, to| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        scene.store.connection().execute_unprepared(&sql).await.unwrap();
    };
    rename("nodes", "away").await;
    sampler.look(&mut is_first).await;
    assert_eq!(
        scene.gauges(),
        [
            "throughline.publisher.lag.age",
            "throughline.deliveries.due.age",
            "throughline.deliveries.unended.age",
            "throughline.dead_letters.waiting",
        ]
    );
    rename("away", "nodes").await;
    rename("outbox", "away").await;
    sampler.look(&mut is_first).await;
    assert_eq!(
        scene.gauges(),
        [
            "throughline.nodes.leased",
            "throughline.deliveries.unended.age",
            "throughline.dead_letters.waiting"
        ]
    );
    rename("away", "outbox").await;
    sampler.look(&mut is_first).await;
    assert_eq!(scene.gauges().len(), 5);
}

#[tokio::test]
async fn one_replica_samples_what_is_the_same_for_all_and_another_when_its_lease_ends() {
    let scene = Scene::new().await;
    let (first, second) = (scene.lease().await, scene.lease().await);
    assert!(first.node < second.node);
    let sampler = scene.sampler(second.node, &scene.measured.meter());
    let mut is_first = true;
    sampler.look(&mut is_first).await;
    assert_eq!(scene.gauges(), ["throughline.publisher.lag.age", "throughline.nodes.leased"]);
    nodes::release(scene.store.connection(), &first, "a replica").await.unwrap();
    sampler.look(&mut is_first).await;
    assert_eq!(scene.gauges().len(), 5);
}
