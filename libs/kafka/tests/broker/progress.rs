use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use throughline_kafka::Settings;
use throughline_kafka::{Mark, Progress};
use throughline_testkit::eventually;

use crate::support::{Broker, SOON, next, until_committed};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_passed_the_records_that_it_has_finished() {
    let broker = Broker::start("progress", 1).await;
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    let topics = [broker.topic.clone()];
    let mark = async || progress.mark(&topics, SOON).await.unwrap();
    let mut empty = mark().await;
    assert!(progress.has_passed(&mut empty, SOON).await.unwrap(), "there is nothing to finish");
    broker.produce(0..2).await;
    let mut two = mark().await;
    assert!(!progress.has_passed(&mut two, SOON).await.unwrap(), "the group does not exist");
    assert!(progress.has_passed(&mut empty, SOON).await.unwrap(), "what was produced later does not matter");

    let mut consumer = broker.consumer(8);
    next(&mut consumer).await.receipt.done();
    until_committed(&broker, 1).await;
    assert!(!progress.has_passed(&mut two, SOON).await.unwrap());
    next(&mut consumer).await.receipt.done();
    until_committed(&broker, 2).await;
    assert!(progress.has_passed(&mut two, SOON).await.unwrap());
    broker.produce(2..3).await;
    assert!(progress.has_passed(&mut two, SOON).await.unwrap());
    consumer.close(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_has_no_mark() {
    let broker = Broker::start("progress-nowhere", 1).await;
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    progress.mark(&[format!("{}-nowhere", broker.topic)], SOON).await.unwrap_err();
}

/// Once the brokers know which of them coordinates the group.
async fn has_passed(progress: &Progress, mark: &mut Mark) -> bool {
    eventually("an answer", SOON, async || Ok(progress.has_passed(mark, SOON).await?)).await.unwrap()
}

type Transactional = ThreadedProducer<DefaultProducerContext>;

/// A producer of others, on real Kafka only: the embedded broker keeps no markers.
fn transactional(settings: &Settings) -> Transactional {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &settings.bootstrap_servers);
    config.set("transactional.id", "others");
    config.create().unwrap()
}

/// Produces into all partitions, and ends with the markers of a transaction.
fn transaction(producer: &Transactional, topic: &str, partitions: i32, commits: bool) {
    producer.begin_transaction().unwrap();
    for partition in 0..partitions {
        let record = BaseRecord::<(), _>::to(topic).partition(partition).payload("{}");
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    // So that what is aborted is there.
    producer.flush(SOON).unwrap();
    if commits { producer.commit_transaction(SOON) } else { producer.abort_transaction(SOON) }.unwrap();
}

/// A group commits the offset behind its last record, and never that of a marker behind it.
#[tokio::test(flavor = "multi_thread")]
async fn transaction_markers_are_passed_with_the_last_record() {
    let Some(broker) = Broker::real_only("progress-markers", 3).await else { return };
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    let topics = [broker.topic.clone()];
    let producer = transactional(&broker.settings);
    producer.init_transactions(SOON).unwrap();
    for commits in [true, false, true, false] {
        transaction(&producer, &broker.topic, 3, commits);
    }
    let mut mark = progress.mark(&topics, SOON).await.unwrap();
    let mut consumer = broker.consumer(8);
    for _ in 0..5 {
        next(&mut consumer).await.receipt.done();
    }
    // The last record of some partition is in work.
    let last = next(&mut consumer).await;
    for _ in 0..3 {
        assert!(!has_passed(&progress, &mut mark).await);
    }
    last.receipt.done();
    eventually("the mark to be passed", SOON, async || {
        anyhow::ensure!(progress.has_passed(&mut mark, SOON).await?, "{mark:?}");
        Ok(())
    })
    .await
    .unwrap();
    consumer.close(SOON).await.unwrap();
}

/// Once each has a leader.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_partitions_are_read_in_one_request() {
    let broker = Broker::start("progress-many", 100).await;
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    eventually("the mark to be passed", SOON, async || {
        let mut mark = progress.mark(std::slice::from_ref(&broker.topic), SOON).await?;
        assert!(progress.has_passed(&mut mark, SOON).await?, "there is nothing to finish");
        Ok(())
    })
    .await
    .unwrap();
}

/// Retention deletes records that the group has not read; it will never commit beyond them by itself.
#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_before_they_were_read_are_passed() {
    let Some(broker) = Broker::real_only("progress-deleted", 1).await else { return };
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    broker.produce(0..3).await;
    let mut mark = progress.mark(std::slice::from_ref(&broker.topic), SOON).await.unwrap();
    assert!(!has_passed(&progress, &mut mark).await);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.settings.bootstrap_servers);
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(&broker.topic, 0, Offset::End).unwrap();
    admin.delete_records(&all, &AdminOptions::new()).await.unwrap();
    assert!(has_passed(&progress, &mut mark).await);
}
