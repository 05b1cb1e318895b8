//! Who calls, and what proves it.

use crate::Fault;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A future on the heap, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a token says about its bearer. Ids are the 32 hex digits of the identity service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub user_id: String,
    /// Its name.
    pub user_name: String,
    /// The domain that the user belongs to.
    pub user_domain_id: String,
    /// That domain's name.
    pub user_domain_name: String,
    /// The project, when the token is scoped to one.
    pub project_id: Option<String>,
    /// Its name.
    pub project_name: Option<String>,
    /// The domain that the project belongs to.
    pub project_domain_id: Option<String>,
    /// That domain's name.
    pub project_domain_name: Option<String>,
    /// The domain, when the token is scoped to one.
    pub domain_id: Option<String>,
    /// Its name.
    pub domain_name: Option<String>,
    /// Whether the token is scoped to the whole system.
    pub system: bool,
    /// Names of the roles on that scope, the implied ones included.
    pub roles: Vec<String>,
    /// Ids of these roles, in the same order.
    pub role_ids: Vec<String>,
    /// Role names of the service token that came along; empty without one.
    pub service_roles: Vec<String>,
    /// The token itself. Never logged.
    pub token: String,
    /// When it was issued, as the identity service writes times.
    pub issued_at: String,
    /// When it ends.
    pub expires_at: String,
    /// `password`, `token`, `application_credential`.
    pub methods: Vec<String>,
    /// Ids that tie tokens to the one they were made from, newest first.
    pub audit_ids: Vec<String>,
    /// The application credential that the token was made from.
    pub application_credential_id: Option<String>,
    /// Whether the roles include `admin`.
    pub is_admin: bool,
}

impl Caller {
    /// Whether the token carries this role (names compare without case, as upstream's policies do).
    #[must_use]
    pub fn has_role(&self, name: &str) -> bool {
        self.roles.iter().any(|role| role.eq_ignore_ascii_case(name))
    }
}

/// Turns a token into a caller.
pub trait Authenticate: Send + Sync {
    /// The caller that this token proves.
    ///
    /// A token that is malformed, expired or revoked is a 401 fault; a database that does not answer is a 503.
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Arc<Caller>, Fault>>;
}
