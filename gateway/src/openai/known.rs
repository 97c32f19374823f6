//! Which fields a request may have, and what becomes of each: none is dropped that would change the
//! answer.

use super::Route;
use super::fields::{Fields, is_one_of, says_nothing};
use super::refused::{Refused, shown};

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Its worker reads it.
    Passed,
    /// The gateway reads it.
    Read,
    /// It says nothing about the answer.
    Harmless,
    /// It asks for what there is not, unless its value is empty, zero, false or one of these; and a
    /// remedy.
    Refused(&'static [&'static str], &'static str),
    /// Likewise, but what is empty, zero or false asks for something too.
    Only(&'static [&'static str], &'static str),
}

use Use::{Harmless, Passed, Read};

type Known = (&'static str, Use);

/// Of all routes.
const ALL: [Known; 8] = [
    ("model", Read),
    ("user", Harmless),
    ("metadata", Harmless),
    ("store", Harmless),
    ("service_tier", Harmless),
    ("safety_identifier", Harmless),
    ("prompt_cache_key", Harmless),
    ("prompt_cache_retention", Harmless),
];

const EMBEDDINGS: [Known; 6] = [
    ("input", Read),
    ("encoding_format", Passed),
    ("dimensions", Passed),
    ("prompt_name", Passed),
    ("truncate", Passed),
    ("input_type", Use::Refused(&[], "prompt_name chooses a prompt of the model")),
];

const EMBED: [Known; 6] = [
    ("inputs", Read),
    ("dimensions", Passed),
    ("prompt_name", Passed),
    ("truncate", Passed),
    (
        "normalize",
        Use::Only(&["true"], "vectors have length 1 here; ask /v1/embeddings for others"),
    ),
    ("truncation_direction", Use::Refused(&[r#""right""#, r#""Right""#], CUT_AT_THE_END)),
];

const RERANK: [Known; 14] = [
    ("query", Passed),
    ("documents", Read),
    ("texts", Read),
    ("top_n", Passed),
    ("return_documents", Passed),
    ("return_text", Read),
    ("raw_scores", Passed),
    ("truncate", Passed),
    ("truncation_direction", Use::Refused(&[r#""right""#, r#""Right""#], CUT_AT_THE_END)),
    ("rank_fields", Use::Refused(&[r#"["text"]"#], "send the texts themselves")),
    ("max_chunks_per_doc", Use::Refused(&["1"], WHOLE)),
    ("max_tokens_per_doc", Use::Refused(&[], WHOLE)),
    ("overlap_tokens", Use::Refused(&[], WHOLE)),
    ("priority", Use::Refused(&[], "the header ebb-priority has it")),
];

const CLASSIFY: [Known; 7] = [
    ("input", Read),
    ("inputs", Read),
    ("top_k", Passed),
    ("aggregation", Passed),
    ("truncate", Passed),
    ("raw_scores", Use::Refused(&[], "scores are those of the labels")),
    ("truncation_direction", Use::Refused(&[r#""right""#, r#""Right""#], CUT_AT_THE_END)),
];

/// Of conversations and completions.
const GENERATION: [Known; 44] = [
    ("temperature", Passed),
    ("top_p", Passed),
    ("top_k", Passed),
    ("max_completion_tokens", Passed),
    ("max_tokens", Passed),
    ("max_new_tokens", Passed),
    ("stop", Passed),
    ("frequency_penalty", Passed),
    ("presence_penalty", Passed),
    ("repetition_penalty", Passed),
    ("seed", Read),
    ("n", Read),
    ("stream", Read),
    ("stream_options", Read),
    ("logit_bias", NOT_KNOWN),
    ("logprobs", Use::Refused(&[], "probabilities are not told; leave it out")),
    ("top_logprobs", Use::Refused(&[], "probabilities are not told; leave it out")),
    ("min_p", NOT_KNOWN),
    ("min_tokens", NOT_KNOWN),
    ("ignore_eos", NOT_KNOWN),
    ("bad_words", NOT_KNOWN),
    ("length_penalty", Use::Refused(&["1", "1.0"], UNKNOWN_HERE)),
    ("use_beam_search", NOT_KNOWN),
    ("num_beams", Use::Refused(&["1"], UNKNOWN_HERE)),
    ("do_sample", Use::Only(&[], "say it by temperature, where 0 takes the likeliest token")),
    ("stop_token_ids", Use::Refused(&[], "stop takes texts")),
    ("stop_sequences", Use::Refused(&[], "stop takes such texts")),
    ("include_stop_str_in_output", Use::Refused(&[], "an answer ends before a text of stop")),
    ("skip_special_tokens", Use::Only(&["true"], "special tokens are never part of an answer")),
    ("structured_outputs", ONLY_TEXT),
    ("guided_json", ONLY_TEXT),
    ("guided_regex", ONLY_TEXT),
    ("guided_choice", ONLY_TEXT),
    ("guided_grammar", ONLY_TEXT),
    ("response_format", Use::Refused(&[r#"{"type":"text"}"#], TEXT_REMEDY)),
    ("modalities", Use::Refused(&[r#"["text"]"#], TEXT_REMEDY)),
    ("audio", ONLY_TEXT),
    ("prediction", Harmless),
    ("parallel_tool_calls", Harmless),
    ("tools", NO_TOOLS),
    ("tool_choice", Use::Refused(&[r#""none""#, r#""auto""#], TOOLS_REMEDY)),
    ("functions", NO_TOOLS),
    ("function_call", Use::Refused(&[r#""none""#, r#""auto""#], TOOLS_REMEDY)),
    ("web_search_options", Use::Only(&[], TOOLS_REMEDY)),
];

const CHAT: [Known; 9] = [
    ("messages", Read),
    ("chat_template_kwargs", Passed),
    ("truncate", Use::Refused(&[], "it is for a prompt; of a conversation send less")),
    ("documents", Use::Refused(&[], "write them into a message")),
    (
        "reasoning_effort",
        Use::Refused(&[r#""none""#], "chat_template_kwargs has what the model reads"),
    ),
    ("verbosity", Use::Refused(&[r#""medium""#], "ask for it in words")),
    ("chat_template", Use::Refused(&[], "the model's own template is used; leave it out")),
    ("add_generation_prompt", Use::Only(&["true"], "an answer always begins anew; send a prompt")),
    ("continue_final_message", Use::Refused(&[], "send a prompt to have a text gone on with")),
];

const COMPLETIONS: [Known; 6] = [
    ("prompt", Read),
    ("truncate", Passed),
    ("suffix", Use::Refused(&[], "text is only written behind a prompt")),
    ("echo", Use::Refused(&[], "the prompt is not repeated")),
    ("logprobs", Use::Only(&["false"], "probabilities are not told; leave it out")),
    ("best_of", Use::Refused(&["1"], "n has all answers; leave it out")),
];

const CUT_AT_THE_END: &str = "the end of a text is cut off";
const WHOLE: &str = "documents are read whole, as far as the model takes them; leave it out";
const UNKNOWN_HERE: &str = "it is not known here; leave it out";
const NOT_KNOWN: Use = Use::Refused(&[], UNKNOWN_HERE);
const TEXT_REMEDY: &str = "only text is written; ask for a form in words";
const ONLY_TEXT: Use = Use::Refused(&[], TEXT_REMEDY);
const TOOLS_REMEDY: &str = "a model calls no tools here; leave it out";
const NO_TOOLS: Use = Use::Refused(&[], TOOLS_REMEDY);

impl Route {
    /// The fields that it knows.
    fn known(self) -> impl Iterator<Item = &'static Known> {
        let own: [&[Known]; 2] = match self {
            Self::Embeddings => [&EMBEDDINGS, &[]],
            Self::Embed => [&EMBED, &[]],
            Self::ChatCompletions => [&CHAT, &GENERATION],
            Self::Completions => [&COMPLETIONS, &GENERATION],
            Self::Rerank => [&RERANK, &[]],
            Self::Classify => [&CLASSIFY, &[]],
        };
        ALL.iter().chain(own.into_iter().flatten())
    }

    /// The fields that a worker reads.
    pub(super) fn passed(self) -> impl Iterator<Item = &'static str> {
        self.known().filter(|(_, becomes)| *becomes == Passed).map(|(name, _)| *name)
    }

    /// Refuses a request with a field that would be dropped although it changes the answer.
    pub(super) fn check(self, fields: &Fields<'_>) -> Result<(), Refused> {
        for name in fields.names() {
            let Some((_, becomes)) = self.known().find(|(known, _)| *known == name) else {
                let name = shown(name);
                let message = format!("{name} is not known here; leave it out");
                return Err(Refused::new(400, "unknown_parameter", message).at(name));
            };
            let (harmless, remedy, is_strict) = match *becomes {
                Use::Refused(harmless, remedy) => (harmless, remedy, false),
                Use::Only(harmless, remedy) => (harmless, remedy, true),
                Passed | Read | Harmless => continue,
            };
            let Some(value) = fields.get(name) else {
                let message = format!("{name} is not for this route; {remedy}");
                return Err(Refused::new(400, "unsupported_parameter", message).at(name));
            };
            if !is_one_of(value, harmless) && (is_strict || !says_nothing(value)) {
                return Err(Refused::unsupported(name, value, remedy));
            }
        }
        Ok(())
    }
}
