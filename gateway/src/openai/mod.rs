//! From a request of OpenAI's HTTP API to the jobs of a queue, and from their answers to its response.
//!
//! Pure: no clock, no task, no queue. What is handed on, such as texts and vectors, is not taken apart.

mod body;
mod classify;
mod embeddings;
mod fields;
mod generation;
mod inputs;
mod known;
mod refused;
mod rerank;
mod stream;
mod values;
mod written;

use bytes::Bytes;
use ebb_queue::Failure;

use self::fields::Fields;
use self::refused::Place;

pub use self::refused::Refused;
pub use self::stream::Streamed;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// Vectors of texts.
    Embeddings,
    /// Vectors of length 1, as clients of text-embeddings-inference ask for them.
    Embed,
    /// An answer to a conversation.
    ChatCompletions,
    /// A text that goes on with another.
    Completions,
    /// Documents by their relevance for a query.
    Rerank,
    /// Labels of texts, or entities in them.
    Classify,
}

/// What one request may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Inputs, documents, or answers that are asked for.
    pub max_inputs: usize,
    /// Bytes of its body.
    pub max_body: usize,
}

/// What a request asks of the queue.
#[derive(Debug, Clone)]
pub struct Asked {
    /// As the client names it; `None` where it names none, as clients of servers with one model do.
    pub model: Option<String>,
    /// Bodies of the jobs, one at least, each as a worker takes it.
    pub bodies: Vec<Bytes>,
    /// Whether the answer is told while it is written. Then there is one body.
    pub stream: bool,
    /// How the results become the response.
    pub answer: Answer,
}

/// How the results of jobs become a response.
#[derive(Debug, Clone)]
pub struct Answer {
    route: Route,
    place: Place,
    shape: Shape,
    /// What the model must find for the request to be answered as it is.
    kind: Option<classify::Kind>,
}

/// What a client wants to be answered in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// An object with a list, as OpenAI, Cohere and Jina have it.
    List,
    /// A list without an object around it, as text-embeddings-inference has it.
    Bare,
    /// Likewise, of one text that was no list.
    BareOne,
    /// So many answers to each prompt; and whether a stream tells what it took.
    Choices { n: usize, with_usage: bool },
}

/// What a response tells of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its id, such as that of its first job.
    pub id: String,
    /// When it came, in seconds since 1970.
    pub created: u64,
    /// The model, as the client names it.
    pub model: String,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With this answer.
    Completed(Bytes),
    /// For good.
    Failed(Failure),
    /// Somebody took it back.
    Cancelled,
    /// With an answer that lies in a store of payloads which the gateway does not have.
    Elsewhere,
    /// With a result that is not there any more, or with none: it was purged.
    Gone,
}

/// Reads the body of a request.
///
/// # Errors
/// When it cannot be answered as it is: which field, and the remedy.
pub fn read(route: Route, body: &[u8], bounds: &Bounds) -> Result<Asked, Refused> {
    if body.len() > bounds.max_body {
        let (n, most) = (body.len(), bounds.max_body);
        let message = format!("body has {n} bytes; send at most {most}");
        return Err(Refused::new(413, "body_too_large", message));
    }
    let mut fields = Fields::read(body, bounds.max_inputs)?;
    route.check(&fields)?;
    let model = fields.text("model")?.map(Into::into);
    let (bodies, answer) = match route {
        Route::Embeddings => embeddings::read(&mut fields, bounds),
        Route::Embed => embeddings::read_bare(&mut fields, bounds),
        Route::ChatCompletions | Route::Completions => generation::read(route, &mut fields, bounds),
        Route::Rerank => rerank::read(&mut fields, bounds),
        Route::Classify => classify::read(&mut fields, bounds),
    }?;
    let is_written = matches!(route, Route::ChatCompletions | Route::Completions);
    let stream = is_written && fields.flag("stream")?;
    Ok(Asked { model, bodies, stream, answer })
}

impl Answer {
    /// The body of the response, in JSON, of the results of all jobs in the order of their bodies.
    ///
    /// # Errors
    /// When a job has no answer, or one of another kind than the route tells; the first such job counts.
    pub fn whole(&self, about: &About, results: &[Ended]) -> Result<Bytes, Refused> {
        let bodies = self.bodies(results)?;
        match self.shape {
            Shape::Choices { n, .. } => written::whole(self.route, about, &bodies, n),
            shape if self.route == Route::Rerank => rerank::whole(shape, about, &bodies),
            shape if self.route == Route::Classify => {
                classify::whole((shape, self.kind), about, &bodies)
            }
            Shape::List => embeddings::whole(about, &bodies),
            Shape::Bare | Shape::BareOne => embeddings::bare(about, &bodies),
        }
    }

    /// Begins a stream. An answer that is not told piece by piece is one event of it.
    #[must_use]
    pub fn stream(&self, about: &About) -> Streamed {
        Streamed::new(self.clone(), about.clone())
    }

    /// The answers of all jobs.
    fn bodies<'a>(&self, results: &'a [Ended]) -> Result<Vec<&'a Bytes>, Refused> {
        let n = if let Shape::Choices { n, .. } = self.shape { n } else { 1 };
        let fields: Vec<&str> = self.route.passed().collect();
        let answer = |(job, ended): (usize, &'a Ended)| ended.answer(&self.place, job / n, &fields);
        results.iter().enumerate().map(answer).collect()
    }
}

#[cfg(test)]
mod tests;
