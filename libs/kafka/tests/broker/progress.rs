use throughline_clock::Clock;
use throughline_kafka::Progress;

use crate::support::{Broker, SOON, next, until_committed};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_passed_what_it_has_finished() {
    let broker = Broker::start("progress", 1).await;
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    let topics = [broker.topic.clone()];
    let has_passed = async || {
        let later = Clock::system().now() + chrono::TimeDelta::hours(1);
        progress.has_passed(&topics, later, SOON).await.unwrap()
    };
    assert!(has_passed().await, "there is nothing to finish");
    broker.produce(0..2).await;
    assert!(!has_passed().await, "a group that nobody has ever seen has finished nothing");

    let mut consumer = broker.consumer(8);
    next(&mut consumer).await.receipt.done();
    until_committed(&broker, 1).await;
    assert!(!has_passed().await);
    next(&mut consumer).await.receipt.done();
    until_committed(&broker, 2).await;
    assert!(has_passed().await);
    consumer.close(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_produced_later_does_not_matter() {
    let Some(_) = crate::support::real(1) else {
        eprintln!("skipped: the embedded broker looks no record up by its time; set THROUGHLINE_TEST_KAFKA");
        return;
    };
    let broker = Broker::start("progress-later", 1).await;
    let progress = Progress::of(&broker.settings, &format!("{}-group", broker.topic)).unwrap();
    let earlier = Clock::system().now() - chrono::TimeDelta::hours(1);
    broker.produce(0..2).await;
    assert!(progress.has_passed(std::slice::from_ref(&broker.topic), earlier, SOON).await.unwrap());
}
