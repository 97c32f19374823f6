//! Tokens that a tokenizer has beside its vocabulary, and that only the small file beside it names.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::LoadError;
use crate::catalog::PURPOSES;
use crate::json::Fields;

const FIELD: &str = "added_tokens_decoder";

#[derive(Deserialize)]
struct Written {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// Adds what `tokenizer_config.json` names and `tokenizer.json` does not have so, in the order of their
/// numbers, as transformers does.
///
/// # Errors
/// When a token would get another number than it has there.
pub(crate) fn add(inner: &mut tokenizers::Tokenizer, config: &Fields) -> Result<(), LoadError> {
    let wrong = |found: &dyn std::fmt::Display| {
        config.wrong(FIELD, found, "it must be of numbers and tokens with content")
    };
    let mut named = Vec::new();
    for (id, token) in config.object(FIELD)?.into_iter().flatten() {
        let number: u32 = id.parse().map_err(|_| wrong(&format!("of {id:?}")))?;
        let written = Written::deserialize(token).map_err(|error| wrong(&error))?;
        named.push((number, written.token(config)?));
    }
    named.sort_by_key(|(id, _)| *id);
    let own = inner.get_added_tokens_decoder();
    let is_new =
        |(id, token): &&(u32, AddedToken)| own.get(id).is_none_or(|it| !is_same(it, token));
    let new: Vec<AddedToken> =
        named.iter().filter(is_new).map(|(_, token)| token.clone()).collect();
    inner.add_tokens(&new);
    for (id, token) in named {
        let number = inner.token_to_id(&token.content);
        if number != Some(id) || inner.id_to_token(id).as_ref() != Some(&token.content) {
            let field = format!("{FIELD}.{id}");
            let number = number.map_or("none".to_owned(), |number| number.to_string());
            let remedy = format!(
                "by tokenizer.json its number is {number}; take both files of the same model"
            );
            return Err(config.wrong(&field, format!("{:?}", token.content), &remedy));
        }
    }
    Ok(())
}

impl Written {
    fn token(self, config: &Fields) -> Result<AddedToken, LoadError> {
        let mut special = self.special;
        // One that is for something is special, whatever else is said of it.
        for purpose in PURPOSES {
            special |= match config.value(purpose) {
                Some(Value::String(name)) => *name == self.content,
                _ => config.text(&[&format!("{purpose}.content")])? == Some(&self.content),
            };
        }
        let token = AddedToken::from(self.content, special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip);
        Ok(token.normalized(self.normalized.unwrap_or(!self.special)))
    }
}

/// In all that it does: the library tells two apart by their content alone.
fn is_same(one: &AddedToken, other: &AddedToken) -> bool {
    let flags = |it: &AddedToken| (it.single_word, it.lstrip, it.rstrip, it.normalized, it.special);
    one.content == other.content && flags(one) == flags(other)
}
