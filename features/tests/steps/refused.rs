//! Steps for topics that reject large records.

use anyhow::{Context as _, ensure};
use cucumber::{given, then, when};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use throughline_messages::name;
use throughline_testkit::{Answer, eventually};

use super::DEADLINE;
use super::posting::send;
use super::records::{find, header, topic_of};
use crate::client::Question;
use crate::world::{Step, World};

/// Kafka's limit for the size of a record batch, after compression.
const MOST_BYTES: &str = "max.message.bytes";

/// Random text, which compression reduces only a little.
fn noise(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

fn topic(world: &World, words: &str) -> anyhow::Result<String> {
    let topics = world.stage.topics();
    Ok(match words {
        "retries" => topics.retries,
        "outcomes" => topics.outcomes,
        "dead letters" => topics.dead_letters,
        route => topic_of(world, route.trim_matches('"'))?,
    })
}

#[given(regex = r"^the topic of (\S+|dead letters) accepts at most (\d+) bytes per batch$")]
#[when(regex = r"^the topic of (\S+|dead letters) accepts at most (\d+) bytes per batch$")]
async fn takes_no_more(world: &mut World, words: String, most: String) -> Step {
    let topic = topic(world, &words)?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", world.stage.broker().bootstrap_servers());
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let (options, meant) = (AdminOptions::new(), ResourceSpecifier::Topic(&topic));
    for altered in admin.alter_configs(&[AlterConfig::new(meant).set(MOST_BYTES, &most)], &options).await? {
        altered.map_err(|(topic, code)| anyhow::anyhow!("cannot alter {topic:?}: {code}"))?;
    }
    let known = eventually("the broker to apply the setting", DEADLINE, async || {
        let mut described = admin.describe_configs(&[meant], &options).await?;
        let described = described.pop().context("the broker described no topic")??;
        let entry = described.get(MOST_BYTES).context("no such setting")?;
        ensure!(entry.value.as_deref() == Some(most.as_str()), "{entry:?}");
        Ok(())
    });
    Ok(known.await?)
}

#[when(regex = r"^a client posts (\d+) random bytes to (/\S+)$")]
async fn post_noise(world: &mut World, size: usize, path: String) -> Step {
    send(world, Question::post(&path, format!("\"{}\"", noise(size - 2)))).await
}

#[given(regex = r"^the third party answers (\d+) with (\d+) random bytes at (/\S+)$")]
async fn answers_with_noise(world: &mut World, status: u16, size: usize, path: String) -> Step {
    let answer = Answer::new(status).with_body(noise(size), "text/plain");
    Ok(world.stage.third_party().answer(&path, answer).await?)
}

#[then("there is a dead letter of the request without its body")]
async fn letter_without_body(world: &mut World) -> Step {
    let topic = world.stage.topics().dead_letters;
    find(world, &topic).await?;
    let letter = world.record()?;
    assert_eq!((header(letter, name::LEFT_OUT), letter.payload.len()), (Some("value"), 0));
    Ok(())
}
