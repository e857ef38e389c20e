//! Topics that do not take what they are to.

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

/// Kafka counts the bytes of what comes at once, after compression.
const MOST_BYTES: &str = "max.message.bytes";

/// Which no compression makes smaller by much.
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

#[given(regex = r"^the topic of (\S+|dead letters) takes no more than (\d+) bytes at once$")]
#[when(regex = r"^the topic of (\S+|dead letters) takes no more than (\d+) bytes at once$")]
async fn takes_no_more(world: &mut World, words: String, most: String) -> Step {
    let topic = topic(world, &words)?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", world.stage.broker().bootstrap_servers());
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let (options, meant) = (AdminOptions::new(), ResourceSpecifier::Topic(&topic));
    for altered in admin.alter_configs(&[AlterConfig::new(meant).set(MOST_BYTES, &most)], &options).await? {
        altered.map_err(|(topic, code)| anyhow::anyhow!("cannot alter {topic:?}: {code}"))?;
    }
    let known = eventually("the broker to know of it", DEADLINE, async || {
        let mut described = admin.describe_configs(&[meant], &options).await?;
        let described = described.pop().context("nothing was described")??;
        let entry = described.get(MOST_BYTES).context("no such setting")?;
        ensure!(entry.value.as_deref() == Some(most.as_str()), "{entry:?}");
        Ok(())
    });
    Ok(known.await?)
}

#[when(regex = r"^a client posts (\d+) bytes of noise to (/\S+)$")]
async fn post_noise(world: &mut World, size: usize, path: String) -> Step {
    send(world, Question::post(&path, format!("\"{}\"", noise(size - 2)))).await
}

#[given(regex = r"^the third party answers (\d+) with (\d+) bytes of noise at (/\S+)$")]
async fn answers_with_noise(world: &mut World, status: u16, size: usize, path: String) -> Step {
    let answer = Answer::new(status).with_body(noise(size), "text/plain");
    Ok(world.stage.third_party().answer(&path, answer).await?)
}

#[then("there is a dead letter of the request, without its body")]
async fn letter_without_body(world: &mut World) -> Step {
    let topic = world.stage.topics().dead_letters;
    find(world, &topic).await?;
    let letter = world.record()?;
    assert_eq!((header(letter, name::LEFT_OUT), letter.payload.len()), (Some("value"), 0));
    Ok(())
}
