//! The Collector dies under load, freezes and recovers, without any effect on the pipeline.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use throughline_testkit::eventually;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::door::Mood;
use crate::say;
use crate::scene::{SOON, Scene, id_of};

/// Duration of each mood: longer than the timeouts of the exporters, and enough to fill their queues.
const WHILE: Duration = Duration::from_secs(10);
/// Requests per second: far below capacity, so that missing requests were delayed by the outage.
const RATE: u32 = 60;
/// Tolerated factor compared to the time before: an exporter that blocks the pipeline delays it for seconds.
const SLOWER: u32 = 10;
/// Delays below this are insignificant on a busy machine.
const NOISE: Duration = Duration::from_secs(1);

/// The result of the outage.
pub(crate) struct Outage {
    pub(crate) wrong: Vec<String>,
    /// Number of requests accepted while the Collector received nothing.
    pub(crate) unseen: usize,
}

pub(crate) async fn play(scene: &Scene) -> anyhow::Result<Outage> {
    scene.door.be(Mood::Open);
    let before = load(scene).await?;
    before.tell("runs");
    let (mut wrong, mut unseen) = (before.missing("runs"), 0);
    for (mood, what) in [(Mood::Shut, "has died"), (Mood::Silent, "is frozen"), (Mood::Open, "has recovered")]
    {
        scene.door.be(mood);
        let seen = load(scene).await?;
        seen.tell(what);
        if mood != Mood::Open {
            unseen += seen.accepted;
        }
        wrong.extend(seen.missing(what));
        if is_much_more(seen.most_within, before.most_within) {
            wrong.push(format!("clients waited for {:?} while the Collector {what}", seen.most_within));
        }
        if is_much_more(seen.until_delivered, before.until_delivered) {
            wrong.push(format!("deliveries took {:?} while the Collector {what}", seen.until_delivered));
        }
    }
    Ok(Outage { wrong, unseen })
}

fn is_much_more(now: Duration, before: Duration) -> bool {
    now > NOISE.max(before * SLOWER)
}

struct Seen {
    posted: usize,
    accepted: usize,
    /// The error of a request that was not accepted.
    refused: BTreeSet<String>,
    /// 95th percentile of the response time; higher ones depend on the machine.
    most_within: Duration,
    until_delivered: Duration,
}

impl Seen {
    fn tell(&self, what: &str) {
        let Self { posted, accepted, most_within, until_delivered, .. } = self;
        say(format_args!(
            "the Collector {what}: {accepted} of {posted} requests accepted, p95 {most_within:.0?}, all delivered after \
             {until_delivered:.0?}",
        ));
    }

    /// A violation, if not all requests were accepted.
    fn missing(&self, what: &str) -> Vec<String> {
        let missing = self.posted - self.accepted;
        let why = &self.refused;
        let wrong = format!("{missing} requests were not accepted while the Collector {what}: {why:?}");
        Vec::from_iter((missing > 0).then_some(wrong))
    }
}

/// Posts at a constant rate for a while, and waits for the last delivery.
async fn load(scene: &Scene) -> anyhow::Result<Seen> {
    let mut pace = interval(Duration::from_secs(1) / RATE);
    // Missed ticks are made up for.
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut clients = JoinSet::new();
    let began = Instant::now();
    while began.elapsed() < WHILE {
        pace.tick().await;
        let request = scene.to_post("one");
        clients.spawn(async move {
            let sent = Instant::now();
            (id_of(request).await, sent.elapsed())
        });
    }
    let answers = clients.join_all().await;
    let ended = Instant::now();
    let posted = answers.len();
    let mut times: Vec<_> = answers.iter().map(|(_, took)| *took).collect();
    times.sort_unstable();
    let most_within = *times.get(posted * 95 / 100).context("nothing was posted")?;
    let (mut accepted, mut refused) = (HashSet::new(), BTreeSet::new());
    for (answer, _) in answers {
        match answer {
            Ok(id) => drop(accepted.insert(id)),
            Err(error) => drop(refused.insert(format!("{error:#}"))),
        }
    }
    eventually("the third party to receive all requests", SOON, async || {
        let calls = scene.third_party.calls().await?;
        let called: HashSet<_> = calls.iter().filter_map(|call| call.header("idempotency-key")).collect();
        let missing = accepted.iter().filter(|id| !called.contains(id.as_str())).count();
        ensure!(missing == 0, "{missing} are missing");
        Ok(())
    })
    .await?;
    Ok(Seen { posted, accepted: accepted.len(), refused, most_within, until_delivered: ended.elapsed() })
}
