//! What all handles noted of their leases, read once for all that is done together.

use tokio::sync::OnceCell;

use super::api::Api;
use super::leases::Claims;
use super::names::Names;
use crate::Result;

/// Nothing, until somebody has to know.
#[derive(Debug, Default)]
pub(super) struct Noted(OnceCell<Claims>);

impl Noted {
    pub(super) async fn claims(&self, api: &Api, names: &Names) -> Result<&Claims> {
        self.0.get_or_try_init(|| Claims::load(api, names)).await
    }
}
