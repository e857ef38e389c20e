use throughline_kafka::Progress;

use crate::support::{Broker, SOON, next, until_committed};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_passed_what_it_has_finished() {
    let broker = Broker::start("progress", 1).await;
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    let topics = [broker.topic.clone()];
    let mark = async || progress.mark(&topics, SOON).await.unwrap();
    let empty = mark().await;
    assert!(progress.has_passed(&empty, SOON).await.unwrap(), "there is nothing to finish");
    broker.produce(0..2).await;
    let two = mark().await;
    assert!(!progress.has_passed(&two, SOON).await.unwrap(), "nobody has ever seen the group");
    assert!(progress.has_passed(&empty, SOON).await.unwrap(), "what was produced later does not matter");

    let mut consumer = broker.consumer(8);
    next(&mut consumer).await.receipt.done();
    until_committed(&broker, 1).await;
    assert!(!progress.has_passed(&two, SOON).await.unwrap());
    next(&mut consumer).await.receipt.done();
    until_committed(&broker, 2).await;
    assert!(progress.has_passed(&two, SOON).await.unwrap());
    broker.produce(2..3).await;
    assert!(progress.has_passed(&two, SOON).await.unwrap());
    consumer.close(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_there_has_no_mark() {
    let broker = Broker::start("progress-nowhere", 1).await;
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    progress.mark(&[format!("{}-nowhere", broker.topic)], SOON).await.unwrap_err();
}
