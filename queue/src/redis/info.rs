//! How the server is set, and what that is worth.

use std::collections::HashMap;

use redis::Value;

use super::Calls;
use super::keeper::{Again, Keeper};
use super::value::{list, text};
use crate::{Info, Limit, Result, Warning};

/// The longest value of a server that does not tell.
const DEFAULT_MAX_BODY: u64 = 512 << 20;

/// What no setting of a server makes good.
pub(crate) const LIMITS: &[Limit] = &[
    Limit {
        promise: "power loss",
        instead: "what was accepted is in the server's memory; it survives a loss of power only as \
                  appendonly and appendfsync say",
    },
    Limit {
        promise: "failover",
        instead: "replicas follow a moment later: what was accepted just before a failover may be \
                  lost, and what was settled may run again",
    },
    Limit {
        promise: "plain clients",
        instead: "what any client writes to the stream has its priority, id and key from when a \
                  worker reads it, 16 to 256 entries at a time, fewer where these are more than \
                  1 MiB. Delay, priority and deadline of the first 32 that none has read, of so \
                  many bytes at most, are in the depth; the rest counts as ready and normal. Whether an id that is not \
                  known is one of these is not told: it is cancelled all the same where more than \
                  these lie there, and its job is dropped, with its reply, when a worker reads it, for key_ttl at most; nor is \
                  who follows one of these told that it was purged. max_ready holds nobody back \
                  who publishes past Ebb; maxmemory with noeviction does",
    },
    Limit {
        promise: "clock",
        instead: "leases and delays go by the server's clock: where that is set back, those that had \
                  begun last so much longer, and so long a job whose worker is lost waits for another",
    },
    Limit {
        promise: "slot moves",
        instead: "while the slot of a queue moves to another node of a cluster, every call on the \
                  queue fails rather than be done by half: leases end meanwhile, and their jobs \
                  come again, the attempt charged. A move that hangs is ended by CLUSTER SETSLOT \
                  SLOT STABLE on both nodes",
    },
];

/// What was found out about a server.
#[derive(Debug)]
pub(super) struct Settings {
    version: String,
    pub(super) max_body: u64,
    /// By name, where it may be asked.
    config: Option<HashMap<String, String>>,
}

impl Settings {
    /// Asks the server; what it keeps to itself is left open.
    pub(super) async fn read(calls: &Calls) -> Result<Self> {
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg("appendonly").arg("appendfsync").arg("maxmemory");
        ask.arg("maxmemory-policy").arg("proto-max-bulk-len");
        let config = match calls.keeper.send(&ask, Again::Yes).await? {
            Ok(answer) => Some(pairs(answer)?),
            Err(_) => None,
        };
        let version = version(&calls.keeper).await?;
        let number = |name: &str| config.as_ref()?.get(name)?.parse().ok();
        let max_body = number("proto-max-bulk-len").unwrap_or(DEFAULT_MAX_BODY);
        Ok(Self { version, max_body, config })
    }

    pub(super) fn info(&self) -> Info {
        Info {
            broker: "redis",
            version: self.version.clone(),
            max_body: Some(self.max_body),
            warnings: self.warnings(),
            limits: LIMITS,
        }
    }

    fn warnings(&self) -> Vec<Warning> {
        let Some(config) = &self.config else {
            let text = "the user may not ask how the server is set (CONFIG GET): whether jobs \
                        survive a restart is not known; grant +config|get";
            return vec![Warning { code: "unknown_durability", text: text.to_owned() }];
        };
        let is = |name: &str, value: &str| config.get(name).is_some_and(|found| found == value);
        let mut warnings = Vec::new();
        if !is("appendonly", "yes") {
            let text = "appendonly no: a restart or a loss of power may lose all jobs since the \
                        last snapshot; set appendonly yes and appendfsync always";
            warnings.push(Warning { code: "power_loss", text: text.to_owned() });
        } else if !is("appendfsync", "always") {
            let policy = config.get("appendfsync").map_or("unknown", String::as_str);
            let text = format!(
                "appendfsync {policy}: the last second or more before a loss of power may be lost; \
                 set appendfsync always"
            );
            warnings.push(Warning { code: "power_loss", text });
        }
        if !is("maxmemory", "0") && !is("maxmemory-policy", "noeviction") {
            let policy = config.get("maxmemory-policy").map_or("unknown", String::as_str);
            let text = format!(
                "maxmemory-policy {policy}: a full server deletes jobs; set maxmemory-policy \
                 noeviction"
            );
            warnings.push(Warning { code: "eviction", text });
        }
        warnings
    }
}

/// The server and its version.
pub(super) async fn version(keeper: &Keeper) -> Result<String> {
    let ask = redis::cmd("INFO").arg("server").clone();
    let version = match keeper.send(&ask, Again::Yes).await? {
        Ok(answer) => product(&text(answer)?),
        Err(_) => None,
    };
    Ok(version.unwrap_or_else(|| format!("Redis {}", keeper.version())))
}

fn pairs(answer: Value) -> Result<HashMap<String, String>> {
    let mut flat = match answer {
        Value::Map(pairs) => pairs.into_iter().flat_map(<[Value; 2]>::from).collect(),
        other => list(other)?,
    }
    .into_iter();
    let mut pairs = HashMap::new();
    while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
        pairs.insert(text(name)?, text(value)?);
    }
    Ok(pairs)
}

/// The server and its version, from what it tells of itself.
fn product(told: &str) -> Option<String> {
    let field = |name: &str| told.lines().find_map(|line| line.strip_prefix(name));
    if let Some(version) = field("valkey_version:") {
        return Some(format!("Valkey {}", version.trim()));
    }
    Some(format!("Redis {}", field("redis_version:")?.trim()))
}
