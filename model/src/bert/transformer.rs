//! What sentence-transformers says of a transformer, in a file that older versions gave other names.

use std::path::Path;

use serde_json::Value;

use crate::LoadError;
use crate::json::Fields;

/// Its names, in the order in which they count.
const NAMES: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// What it hands on when a model, its configuration or its tokenizer is loaded, and to the tokenizer
/// with each text; older versions called the first three `_args`.
const HANDED_ON: [&str; 7] = [
    "config_args",
    "config_kwargs",
    "model_args",
    "model_kwargs",
    "tokenizer_args",
    "processor_kwargs",
    "processing_kwargs",
];
/// Where the length of a text may stand among these.
const LENGTHS: [&str; 2] = ["processor_kwargs.model_max_length", "tokenizer_args.model_max_length"];

/// What says where files come from, how they are read and what numbers are computed with.
const HARMLESS: [&str; 15] = [
    "attn_implementation",
    "cache_dir",
    "clean_up_tokenization_spaces",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "revision",
    "subfolder",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_auth_token",
    "use_fast",
    "use_safetensors",
];

/// What makes no difference in these parts: a head that is not run, and what is kept for text to be
/// gone on with.
const HARMLESS_IN: [&str; 4] = [
    "config_args.use_cache",
    "config_kwargs.use_cache",
    "model_args.add_pooling_layer",
    "model_kwargs.add_pooling_layer",
];
/// What is said with each text, and the values that it has without.
const OF_TEXT: [(&str, &[&str]); 3] = [
    ("padding", &["true", r#""longest""#]),
    ("truncation", &["true", r#""longest_first""#]),
    ("return_tensors", &[r#""pt""#]),
];
/// What makes other tokens of a query than of a document.
const OF_QUERIES: [&str; 2] = ["query_length", "query_expansion"];

/// Reads the file of a directory, where there is one, and refuses what it hands on unless it is known.
pub(super) fn read(dir: &Path) -> Result<Fields, LoadError> {
    for name in NAMES {
        let fields = Fields::read_if_there(&dir.join(name))?;
        if !fields.is_empty() {
            check(&fields)?;
            return Ok(fields);
        }
    }
    Fields::read_if_there(&dir.join(NAMES[0]))
}

/// Tokens that a text is cut to, where it says.
pub(super) fn limit(fields: &Fields) -> Result<Option<usize>, LoadError> {
    for name in LENGTHS.into_iter().chain(["max_seq_length"]) {
        let limit = fields.limit(name)?;
        if limit.is_some() {
            return Ok(limit);
        }
    }
    Ok(None)
}

fn check(fields: &Fields) -> Result<(), LoadError> {
    for name in OF_QUERIES {
        if let Some(value) = fields.value(name).filter(|value| !value.is_null()) {
            let remedy = "queries are read as any text here; choose a model without";
            return Err(fields.wrong(name, value, remedy));
        }
    }
    for part in HANDED_ON {
        for (name, value) in fields.object(part)?.into_iter().flatten() {
            let field = format!("{part}.{name}");
            let is_known = HARMLESS.contains(&&**name)
                || [&LENGTHS[..], &HARMLESS_IN].concat().contains(&&*field)
                || (field == "processing_kwargs.text" && is_usual(value));
            if !is_known && !is_nothing(value) {
                let remedy = "what it changes is not done here; take it out where the model does not \
                              need it";
                return Err(fields.wrong(&field, value, remedy));
            }
        }
    }
    Ok(())
}

/// Whether a text is cut and filled up as it is where nothing is said.
fn is_usual(value: &Value) -> bool {
    let is_usual = |(name, value): (&String, &Value)| {
        let usual = OF_TEXT.iter().find(|(own, _)| own == name);
        usual.is_some_and(|(_, usual)| usual.contains(&&*value.to_string()))
    };
    value.as_object().is_some_and(|map| map.iter().all(is_usual))
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limits(files: &[(&str, Value)]) -> Result<Option<usize>, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content.to_string()).unwrap();
        }
        read(dir.path()).and_then(|fields| limit(&fields)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_is_found_by_each_of_its_names_and_counts_where_it_says_something() {
        assert_eq!(limits(&[]), Ok(None));
        for name in NAMES {
            assert_eq!(limits(&[(name, json!({"max_seq_length": 7}))]), Ok(Some(7)), "{name}");
            assert!(crate::catalog::FILES.contains(&name), "{name} is fetched");
        }
        let [first, other] = [NAMES[0], NAMES[2]];
        let of = |n: usize| json!({"max_seq_length": n});
        assert_eq!(limits(&[(other, of(7)), (first, of(8))]), Ok(Some(8)));
        assert_eq!(limits(&[(other, of(7)), (first, json!({}))]), Ok(Some(7)));
    }

    #[test]
    fn the_length_that_is_handed_to_the_tokenizer_counts_more_than_the_other() {
        for part in ["tokenizer_args", "processor_kwargs"] {
            let file = json!({part: {"model_max_length": 5}, "max_seq_length": 9});
            assert_eq!(limits(&[(NAMES[0], file)]), Ok(Some(5)));
        }
    }

    #[test]
    fn what_is_handed_on_and_not_known_is_refused_by_its_name() {
        for part in HANDED_ON {
            for nothing in [json!(null), json!({}), json!([])] {
                let file = json!({part: {"x": nothing, "trust_remote_code": true}});
                assert_eq!(limits(&[(NAMES[0], file)]), Ok(None), "{part}");
            }
            let error = limits(&[(NAMES[0], json!({part: {"x": {"y": 1}}}))]).unwrap_err();
            let says = format!("{}: {part}.x is {{\"y\":1}}; what it changes is not", NAMES[0]);
            assert!(error.contains(&says), "{error}");
        }
        for file in [json!({"query_length": 32}), json!({"query_expansion": false})] {
            let error = limits(&[(NAMES[0], file)]).unwrap_err();
            assert!(error.contains("; queries are read as any text here"), "{error}");
        }
        for text in [json!({"padding": "max_length"}), json!({"truncation": false}), json!("a")] {
            let error = limits(&[(NAMES[0], json!({"processing_kwargs": {"text": text}}))]);
            assert!(error.unwrap_err().contains("processing_kwargs.text is "), "{text}");
        }
        let error = limits(&[(NAMES[1], json!({"model_args": {"model_max_length": 5}}))]);
        assert!(error.unwrap_err().contains("model_args.model_max_length is 5"));
    }

    #[test]
    fn what_is_handed_on_and_makes_no_difference_is_passed_over() {
        for file in [
            json!({"model_kwargs": {"add_pooling_layer": false}, "query_length": null}),
            json!({"config_kwargs": {"use_cache": false}, "query_expansion": null}),
            json!({"processing_kwargs": {"text": {"padding": true, "truncation": "longest_first"}}}),
            json!({"processing_kwargs": {"text": {"padding": "longest", "truncation": true}}}),
        ] {
            assert_eq!(limits(&[(NAMES[0], file.clone())]), Ok(None), "{file}");
        }
        let elsewhere = json!({"tokenizer_args": {"use_cache": false}});
        assert!(limits(&[(NAMES[0], elsewhere)]).is_err());
    }
}
