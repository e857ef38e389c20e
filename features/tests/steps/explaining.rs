//! The story of a request, in words.

use anyhow::ensure;
use cucumber::{gherkin, then};
use throughline_testkit::{Service, eventually};

use super::{DEADLINE, text};
use crate::world::{Step, World};

/// The column in which a line of the story says when; what follows it are the words.
const WHEN: usize = 29;

#[then("the request explains itself, with … for what differs from time to time")]
async fn explains_itself(world: &mut World, step: &gherkin::Step) -> Step {
    let (id, wanted) = (world.request_id()?, text(step));
    let explained = eventually("the story of the request", DEADLINE, async || {
        let story = world.client.story(world.stage.address(Service::Ingest)?, &id).await?;
        let told: Vec<_> = story.lines().map(|line| line.get(WHEN..).unwrap_or_default()).collect();
        let wanted: Vec<_> = wanted.lines().map(str::trim).collect();
        let is_told =
            wanted.len() == told.len() && wanted.iter().zip(&told).all(|(one, other)| fits(other, one));
        ensure!(is_told, "it tells:\n{story}");
        Ok(())
    });
    Ok(explained.await?)
}

/// Whether a text is as wanted, where `…` stands for anything.
fn fits(text: &str, wanted: &str) -> bool {
    let Some((begin, rest)) = wanted.split_once('…') else { return text == wanted };
    let Some(text) = text.strip_prefix(begin) else { return false };
    text.char_indices().map(|(place, _)| place).chain([text.len()]).any(|place| fits(&text[place..], rest))
}
