//! What a small request holds in memory.

use super::fields::Fields;
use super::values::{AtMost, List, OneOrMany};
use super::*;

const N: usize = 100_000;

fn list(item: &str) -> String {
    format!("[{}]", vec![item; N].join(","))
}

#[track_caller]
fn refuses(route: Route, body: &str, says: &str) {
    let bounds = Bounds { max_body: 8 << 20, ..BOUNDS };
    let refused = read(route, body.as_bytes(), &bounds).expect_err(says);
    assert!(refused.message.starts_with(says), "{refused}");
    assert_eq!(refused.status, 400, "{refused}");
}

#[test]
fn items_above_what_a_field_may_have_are_counted_and_not_kept() {
    for (field, most) in [("messages", 2048), ("input", 16), ("documents", 16)] {
        for item in ["{\"\":0}", "0", "[[]]"] {
            let body = format!("{{\"{field}\":{}}}", list(item));
            let mut fields = Fields::read(body.as_bytes(), 16).unwrap();
            let Some(OneOrMany::Many(List { items, n })) = fields.take(field) else {
                panic!("{field} is a list")
            };
            assert_eq!((items.len(), n), (most, N), "{field} of {item}");
            assert!(items.capacity() <= most.next_power_of_two(), "{field} of {item}");
        }
    }
    let raw: Box<serde_json::value::RawValue> = serde_json::from_str(&list("{}")).unwrap();
    let Some(OneOrMany::Many(parts)) = AtMost(3).of(&raw) else { panic!("it is a list") };
    assert_eq!((parts.items.len(), parts.n), (3, N));
}

#[test]
fn what_is_too_many_is_told_with_its_number() {
    let chat = |body: &str, says: &str| refuses(Route::ChatCompletions, body, says);
    let item = r#"{"role":"user","content":"a"}"#;
    chat(&format!("{{\"messages\":{}}}", list(item)), "messages has 100000; send 1 to 2048");
    let part = r#"{"type":"text","text":"a"}"#;
    let message = format!("{{\"role\":\"user\",\"content\":{}}}", list(part));
    let says = "messages[0].content has 100000 parts; send 8192 at most in all messages";
    chat(&format!("{{\"messages\":[{message}]}}"), says);
    let half = vec![part; 5000].join(",");
    let half = format!("{{\"role\":\"user\",\"content\":[{half}]}}");
    let says = "messages[1].content has 5000 parts; send 8192 at most in all messages";
    chat(&format!("{{\"messages\":[{half},{half}]}}"), says);
    refuses(Route::Embeddings, &format!("{{\"input\":{}}}", list("0")), "input has 100000; send");
    let many: Vec<String> = (0..N).map(|n| format!("\"{n}\":0")).collect();
    let many = many.join(",");
    chat(&format!("{{{many}}}"), "body: more than 128 fields are there");
    chat(&format!("{{\"messages\":[{{{many}}}]}}"), "messages[0]: more than 64 fields are there;");
    let twice = r#"{"messages":[{"role":"user","role":"user","content":"a"}]}"#;
    chat(twice, "messages[0]: role is there twice; send a list of objects");
    let documents = format!("{{\"query\":\"q\",\"documents\":[{{\"text\":\"a\",{many}}}]}}");
    let bounds = Bounds { max_body: 8 << 20, ..BOUNDS };
    assert!(read(Route::Rerank, documents.as_bytes(), &bounds).is_ok(), "texts alone are read");
}

#[test]
fn as_many_as_may_be_are_read() {
    let messages = vec![json!({"role": "user", "content": [{"type": "text", "text": ""}]}); 2048];
    assert_eq!(jobs(Route::ChatCompletions, &json!({"messages": messages})).len(), 1);
    let parts = vec![json!({"type": "text", "text": "a"}); 8192];
    let messages = json!([{"role": "user", "content": parts}]);
    assert_eq!(jobs(Route::ChatCompletions, &json!({"messages": messages})).len(), 1);
}
