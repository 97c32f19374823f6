//! From the labels of tokens to the entities of a text, as transformers groups them.

use super::tagger::Tag;

/// A run of tokens with one label.
#[derive(Debug, Clone, PartialEq)]
pub struct Entity {
    /// The label, without `B-` or `I-`.
    pub label: String,
    /// The mean of the scores of its tokens.
    pub score: f32,
    /// Where it begins in the text, in characters.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// Groups neighbours of one label; a `B-` begins an entity anew. What is outside is left out.
///
/// This is the aggregation `simple` of transformers' pipeline.
pub fn entities(tags: &[Tag], labels: &[String]) -> Vec<Entity> {
    let mut groups: Vec<(&str, Vec<&Tag>)> = Vec::new();
    for tag in tags {
        let (begins, name) = parts(&labels[tag.label]);
        match groups.last_mut() {
            Some((last, group)) if *last == name && !begins => group.push(tag),
            _ => groups.push((name, vec![tag])),
        }
    }
    let inside = groups.into_iter().filter(|(name, _)| *name != "O");
    inside.map(|(name, group)| entity(name, &group)).collect()
}

fn entity(name: &str, group: &[&Tag]) -> Entity {
    let score = group.iter().map(|tag| tag.score).sum::<f32>() / group.len() as f32;
    let (start, end) = (group[0].start, group[group.len() - 1].end);
    Entity { label: name.to_owned(), score, start, end }
}

/// Whether a label begins an entity, and the name of the entity.
fn parts(label: &str) -> (bool, &str) {
    match label.split_once('-') {
        Some(("B", name)) => (true, name),
        Some(("I", name)) => (false, name),
        _ => (false, label),
    }
}

/// The words of a text that are inside of something, each with the label of its first token.
pub fn words(tags: &[Tag], labels: &[String]) -> Vec<Entity> {
    let mut words: Vec<(Option<u32>, Entity)> = Vec::new();
    for tag in tags {
        match words.last_mut() {
            Some((word, entity)) if tag.word.is_some() && *word == tag.word => entity.end = tag.end,
            _ => words.push((tag.word, entity(&labels[tag.label], &[tag]))),
        }
    }
    words.into_iter().map(|(_, word)| word).filter(|word| word.label != "O").collect()
}
