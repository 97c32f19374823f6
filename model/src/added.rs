//! What a tokenizer has beside its vocabulary, and only the small files beside it name.

use std::collections::HashSet;

use tokenizers::{AddedToken, Tokenizer};

use crate::LoadError;
use crate::json::Fields;
use crate::named::{Named, Written};

/// Adds what `tokenizer_config.json` names and `tokenizer.json` does not have so, as transformers does:
/// first by number, then what is for something, then the others. Without numbers there, older files
/// count.
///
/// # Errors
/// When a token would get another number than it has there.
pub(crate) fn add(
    inner: &mut Tokenizer,
    named: &Named<'_>,
    config: &Fields,
) -> Result<(), LoadError> {
    let numbered = named.by_number()?.into_iter();
    let by_number: Vec<_> = numbered.map(|it| (it.id, made(it.token, it.is_for))).collect();
    let before = inner.get_added_tokens_decoder();
    let mut known: HashSet<&str> = before.values().map(|it| &*it.content).collect();
    let is_old = named.is_numbered();
    let is_new = |(id, token): &&(u32, AddedToken)| match is_old {
        true => before.get(id).is_none_or(|it| !is_same(it, token)),
        false => !known.contains(&*token.content),
    };
    let mut new: Vec<AddedToken> =
        by_number.iter().filter(is_new).map(|(_, token)| token.clone()).collect();
    known.extend(by_number.iter().map(|(_, token)| &*token.content));
    let purposes = named.purposes().map(|it| (it, true));
    for (written, is_for) in purposes.chain(named.others().iter().map(|it| (it, false))) {
        if known.insert(&written.content) {
            new.push(made(written.clone(), is_for));
        }
    }
    // A number that an older file gives a token of tokenizer.json does not count.
    let is_new =
        |(_, token): &&(u32, AddedToken)| is_old || inner.token_to_id(&token.content).is_none();
    let numbered: Vec<_> = by_number.iter().filter(is_new).collect();
    inner.add_tokens(&new);
    inner.set_encode_special_tokens(config.flag("split_special_tokens")?);
    numbered.iter().try_for_each(|(id, token)| check(named, inner, *id, &token.content))
}

/// Holds the number that a token was given against the one that it must have.
fn check(named: &Named<'_>, inner: &Tokenizer, id: u32, content: &str) -> Result<(), LoadError> {
    let number = inner.token_to_id(content);
    if number == Some(id) && inner.id_to_token(id).as_deref() == Some(content) {
        return Ok(());
    }
    Err(named.misnumbered(id, content, number))
}

fn made(written: Written, is_for: bool) -> AddedToken {
    let token = AddedToken::from(written.content, written.special || is_for)
        .single_word(written.single_word)
        .lstrip(written.lstrip)
        .rstrip(written.rstrip);
    token.normalized(written.normalized.unwrap_or(!written.special))
}

/// In all that it does: the library tells two apart by their content alone.
fn is_same(one: &AddedToken, other: &AddedToken) -> bool {
    let flags = |it: &AddedToken| (it.single_word, it.lstrip, it.rstrip, it.normalized, it.special);
    one.content == other.content && flags(one) == flags(other)
}
