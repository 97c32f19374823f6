//! From the labels of tokens to the entities of a text, as transformers groups them.

use super::tagger::Tag;

/// A run of tokens with one label.
#[derive(Debug, Clone, PartialEq)]
pub struct Entity {
    /// The label of its first token: of an entity what stands behind the first `-`, if there is one,
    /// such as the name behind `B-`; of a word the whole label.
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
    let named = groups.iter().map(|(_, group)| (name(&labels[group[0].label]), group));
    named.filter(|(name, _)| *name != "O").map(|(name, group)| entity(name, group)).collect()
}

/// What an entity is called by the label of its first token: `U-`, `S-` and the like are left out too,
/// though only `B-` and `I-` tell how tokens are grouped.
fn name(label: &str) -> &str {
    label.split_once('-').map_or(label, |(_, name)| name)
}

fn entity(name: &str, group: &[&Tag]) -> Entity {
    let score = group.iter().map(|tag| tag.score).sum::<f32>() / group.len() as f32;
    let (start, end) = (group[0].start, group[group.len() - 1].end);
    Entity { label: name.to_owned(), score, start, end }
}

/// Whether a label begins an entity, and by what it goes on with the one before it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_is_named_as_transformers_names_it_by_whatever_scheme_its_labels_are_written() {
        // What `group_entities` of the pipeline in transformers 5.24.0 makes of tokens with these labels.
        for (labels, expected) in [
            ("B-AGE I-AGE O I-AGE", "AGE:0-2 AGE:3-4"),
            ("B-AGE B-AGE AGE", "AGE:0-1 AGE:1-3"),
            ("O U-AGE O", "AGE:1-2"),
            ("B-AGE L-AGE U-AGE U-AGE", "AGE:0-1 AGE:1-2 AGE:2-4"),
            ("B-AGE I-AGE E-AGE S-AGE", "AGE:0-2 AGE:2-3 AGE:3-4"),
            ("B-first-name I-first-name", "first-name:0-2"),
            ("first-name first-name last-name", "name:0-2 name:2-3"),
            ("U-O B-O O", ""),
        ] {
            let names: Vec<String> = labels.split(' ').map(str::to_owned).collect();
            let tag = |n| Tag { label: n, score: 0.5, start: n, end: n + 1, word: Some(n as u32) };
            let tags: Vec<Tag> = (0..names.len()).map(tag).collect();
            let found = entities(&tags, &names);
            let found = found.iter().map(|it| format!("{}:{}-{}", it.label, it.start, it.end));
            assert_eq!(found.collect::<Vec<_>>().join(" "), expected, "{labels}");
        }
    }
}
