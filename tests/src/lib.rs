//! What the end-to-end tests share: the built binaries, processes that end with their test, HTTP
//! by hand, and the sources of this repository as text.
//!
//! Nothing here links a model; the binaries are built beforehand (see [`binary`]).

mod binary;
mod http;
mod process;
mod promql;
mod skip;
mod source;
mod wait;
mod workplace;

pub use binary::{binary, offline};
pub use http::{Answer, FileServer, Reading, ask, get};
pub use process::{Process, Run, processes_that_mention, run};
pub use promql::{Asked, Matcher};
pub use skip::skipped;
pub use source::{Source, sources, tracked_files, workspace_root};
pub use wait::{PATIENCE, eventually, wait_for};
pub use workplace::Workplace;
