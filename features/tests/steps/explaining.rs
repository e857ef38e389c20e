//! Steps for the explanation of a request.

use anyhow::ensure;
use cucumber::{gherkin, then};
use throughline_testkit::{Service, eventually};

use super::{DEADLINE, text};
use crate::world::{Step, World};

/// The column in which the description of an event begins, after its time.
const DESCRIPTION: usize = 29;

#[then("the request is explained as follows, with … for variable parts")]
async fn is_explained(world: &mut World, step: &gherkin::Step) -> Step {
    let (id, wanted) = (world.request_id()?, text(step));
    let explained = eventually("the explanation of the request", DEADLINE, async || {
        let explanation = world.client.explanation(world.stage.address(Service::Ingest)?, &id).await?;
        let lines: Vec<_> =
            explanation.lines().map(|line| line.get(DESCRIPTION..).unwrap_or_default()).collect();
        let wanted: Vec<_> = wanted.lines().map(str::trim).collect();
        let is_as_wanted =
            wanted.len() == lines.len() && wanted.iter().zip(&lines).all(|(one, other)| fits(other, one));
        ensure!(is_as_wanted, "the explanation is:\n{explanation}");
        Ok(())
    });
    Ok(explained.await?)
}

/// Returns whether a text matches the wanted one, in which `…` stands for any text.
fn fits(text: &str, wanted: &str) -> bool {
    let Some((begin, rest)) = wanted.split_once('…') else { return text == wanted };
    let Some(text) = text.strip_prefix(begin) else { return false };
    text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| fits(&text[at..], rest))
}
