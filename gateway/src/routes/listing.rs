//! `/v1/models`: what a client may name, in OpenAI's shape.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ebb_queue::JSON;
use serde::Serialize;

use super::jobs::named;
use super::{Endpoint, Site, Visit, guarded};
use crate::refusal::Refusal;

#[derive(Debug, Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
}

pub(super) fn routes() -> axum::Router<Arc<Site>> {
    let list = |State(site): State<Arc<Site>>, request: Request| {
        guarded(site, Endpoint::Models, request, async |visit, _| Ok(list(&visit)))
    };
    // A name may have slashes in it, as those of a hub have.
    let one = |State(site): State<Arc<Site>>,
               name: Result<Path<String>, PathRejection>,
               request: Request| {
        let name = named(name);
        guarded(site, Endpoint::Models, request, async move |visit, _| one(&visit, &name))
    };
    axum::Router::new().route("/v1/models", get(list)).route("/v1/models/{*name}", get(one))
}

fn list(visit: &Visit) -> Response {
    let names = visit.site.parts.models.names(visit.key.as_deref());
    let data = names.map(|(name, _)| entry(visit, name)).collect();
    json(&List { object: "list", data })
}

fn one(visit: &Visit, name: &str) -> Result<Response, Refusal> {
    visit.site.parts.models.find(name, visit.key.as_deref())?;
    Ok(json(&entry(visit, name)))
}

fn entry<'a>(visit: &Visit, id: &'a str) -> Entry<'a> {
    Entry { id, object: "model", created: visit.site.since, owned_by: "ebb" }
}

/// A response of JSON.
pub(super) fn json(body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("keys are texts, and numbers are finite");
    ([(CONTENT_TYPE, JSON)], body).into_response()
}
