//! Which fields an object may have: `tests/schemas`, read and applied.

use std::collections::BTreeMap;

use serde_json::Value;

/// The types of all schemas, and where each kind of object begins.
#[derive(Debug, Default)]
pub(crate) struct Schemas {
    roots: BTreeMap<String, Type>,
    named: BTreeMap<String, Fields>,
}

/// The fields of a type.
#[derive(Debug, Default)]
struct Fields {
    fields: BTreeMap<String, Type>,
    needed: Vec<String>,
    /// There may be more than are told.
    open: bool,
}

#[derive(Debug, Clone)]
enum Type {
    Text,
    Whole,
    Number,
    Truth,
    /// A quantity is a text or a number, and so is a port; both are checked no further.
    Either,
    Any,
    List(Box<Self>),
    Map(Box<Self>),
    Words(Vec<String>),
    Named(String),
}

impl Type {
    fn read(text: &str) -> Self {
        let inner = |open, close| text.strip_prefix(open)?.strip_suffix(close);
        if let Some(inner) = inner('[', ']') {
            return Self::List(Box::new(Self::read(inner)));
        }
        if let Some(inner) = inner('{', '}') {
            return Self::Map(Box::new(Self::read(inner)));
        }
        match text {
            "string" => Self::Text,
            "integer" => Self::Whole,
            "number" => Self::Number,
            "boolean" => Self::Truth,
            "quantity" | "intstr" => Self::Either,
            "any" => Self::Any,
            words if words.contains('|') => {
                Self::Words(words.split('|').map(str::to_owned).collect())
            }
            name => Self::Named(name.to_owned()),
        }
    }
}

impl Schemas {
    /// All that lies in `tests/schemas`.
    pub(crate) fn load() -> Self {
        let mut all = Self::default();
        let folder = e2e::workspace_root().join("tests/schemas");
        for file in std::fs::read_dir(folder).unwrap() {
            all.read(&std::fs::read_to_string(file.unwrap().path()).unwrap());
        }
        assert!(all.roots.len() > 30, "the schemas were not found");
        all
    }

    fn read(&mut self, page: &str) {
        let mut open = String::new();
        for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some((root, name)) = line.split_once(" = ") {
                self.roots.insert(root.to_owned(), Type::read(name));
            } else if let Some(field) = line.strip_prefix("  ") {
                let fields = self.named.entry(open.clone()).or_default();
                let Some((name, kind)) = field.split_once(' ') else {
                    fields.open = true;
                    continue;
                };
                let bare = name.trim_end_matches('!');
                if bare != name {
                    fields.needed.push(bare.to_owned());
                }
                fields.fields.insert(bare.to_owned(), Type::read(kind));
            } else {
                open = line.to_owned();
                self.named.entry(open.clone()).or_default();
            }
        }
    }

    /// What is wrong with an object.
    pub(crate) fn objections(&self, object: &Value) -> Vec<String> {
        let word = |key: &str| object[key].as_str().unwrap_or_default();
        let root = format!("{} {}", word("apiVersion"), word("kind"));
        let Some(kind) = self.roots.get(&root) else {
            return vec![format!("there is no `{root}` in tests/schemas")];
        };
        let mut found = Vec::new();
        self.walk(kind, object, "", &mut found);
        found
    }

    fn walk(&self, kind: &Type, value: &Value, path: &str, found: &mut Vec<String>) {
        let fits = match kind {
            Type::Text => value.is_string(),
            Type::Whole => value.is_i64() || value.is_u64(),
            Type::Number => value.is_number(),
            Type::Truth => value.is_boolean(),
            Type::Either => value.is_string() || value.is_number(),
            Type::Any => true,
            Type::Words(words) => value.as_str().is_some_and(|v| words.iter().any(|w| w == v)),
            Type::List(inner) => {
                let items = value.as_array().into_iter().flatten().enumerate();
                items.for_each(|(at, v)| self.walk(inner, v, &format!("{path}[{at}]"), found));
                value.is_array()
            }
            Type::Map(inner) => {
                let items = value.as_object().into_iter().flatten();
                items.for_each(|(key, v)| self.walk(inner, v, &format!("{path}.{key}"), found));
                value.is_object()
            }
            // `apiVersion` and `kind` of a type are the words that it begins with.
            Type::Named(name) if !self.named.contains_key(name) => value == name.as_str(),
            Type::Named(name) => {
                self.fields(&self.named[name], value, path, found);
                value.is_object()
            }
        };
        if !fits {
            found.push(format!("{path}: {value} is no {kind:?}"));
        }
    }

    fn fields(&self, kind: &Fields, value: &Value, path: &str, found: &mut Vec<String>) {
        let Some(object) = value.as_object() else { return };
        for (name, value) in object {
            match kind.fields.get(name) {
                Some(inner) => self.walk(inner, value, &format!("{path}.{name}"), found),
                None if kind.open => {}
                None => found.push(format!("{path}.{name}: there is no such field")),
            }
        }
        let missing = kind.needed.iter().filter(|name| !object.contains_key(*name));
        found.extend(missing.map(|name| format!("{path}.{name}: is missing")));
    }
}
