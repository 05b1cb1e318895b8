//! A service with its routes and rules made ready.

use crate::call::PathParams;
use crate::policy::{COMMON, Policy, Verdict};
use crate::service::UnknownQuery;
use crate::{Caller, Fault, FaultStyle, MicroRange, Operation, Service, Target};
use base::gate::Gate;
use percent_encoding::percent_decode_str;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The declarations contradict themselves.
#[derive(Debug, thiserror::Error)]
pub enum BadDeclaration {
    /// A policy rule.
    #[error("service {0}: {1}")]
    Policy(String, crate::policy::BadRule),
    /// A path template.
    #[error("service {service}: the path {path} cannot be served: {why}")]
    Path {
        /// Which service.
        service: &'static str,
        /// Which path.
        path: &'static str,
        /// Why.
        why: String,
    },
    /// A policy override for something that does not exist.
    #[error(
        "policy overrides name the service or rule '{0}', which does not exist; remove it or correct its name"
    )]
    Override(String),
}

/// A service with its routes and rules made ready.
pub struct Mounted<S> {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) prefix: &'static str,
    pub(crate) micro: Option<MicroRange>,
    pub(crate) faults: FaultStyle,
    pub(crate) unknown_query: UnknownQuery,
    pub(crate) policy: Policy,
    table: matchit::Router<usize>,
    pub(crate) routes: Vec<Vec<Arc<Operation<S>>>>,
}

impl<S> Mounted<S> {
    pub(crate) fn new(
        service: Service<S>,
        overrides: Option<&BTreeMap<String, String>>,
    ) -> Result<Self, BadDeclaration> {
        let bad = |error| BadDeclaration::Policy(service.name.to_owned(), error);
        let mut policy = Policy::default();
        for (name, text) in COMMON.iter().chain(service.rules) {
            policy.add(*name, text).map_err(bad)?;
        }
        let mut table = matchit::Router::new();
        let mut routes: Vec<Vec<Arc<Operation<S>>>> = Vec::new();
        let mut known: HashMap<&'static str, usize> = HashMap::new();
        for operation in service.operations {
            if let Some((name, text)) = operation.policy {
                policy.add(name, text).map_err(bad)?;
            }
            let path = operation.path;
            let index = match known.get(path) {
                Some(index) => *index,
                None => {
                    table.insert(path, routes.len()).map_err(|error| BadDeclaration::Path {
                        service: service.name,
                        path,
                        why: error.to_string(),
                    })?;
                    known.insert(path, routes.len());
                    routes.push(Vec::new());
                    routes.len() - 1
                }
            };
            if let Some(list) = routes.get_mut(index) {
                list.push(Arc::new(operation));
            }
        }
        for (name, text) in overrides.into_iter().flatten() {
            if !policy.has(name) {
                return Err(BadDeclaration::Override(format!("{}: {name}", service.name)));
            }
            policy.add(name.clone(), text).map_err(bad)?;
        }
        policy.verify().map_err(bad)?;
        Ok(Self {
            name: service.name,
            kind: service.kind,
            prefix: service.prefix,
            micro: service.micro,
            faults: service.faults,
            unknown_query: service.unknown_query,
            policy,
            table,
            routes,
        })
    }

    /// A denial in the words of the service.
    pub(crate) fn forbidden(&self, rule: &str) -> Fault {
        match self.faults {
            FaultStyle::Keystone => {
                Fault::forbidden(format!("You are not authorized to perform the requested action: {rule}."))
            }
            FaultStyle::Neutron => Fault::forbidden(format!("rule:{rule} is disallowed by policy")),
            FaultStyle::Glance => {
                Fault::forbidden(format!("You are not authorized to complete {rule} action."))
            }
            FaultStyle::Nova | FaultStyle::Cinder | FaultStyle::Swift | FaultStyle::Placement => {
                Fault::not_allowed(rule)
            }
        }
    }

    /// Checks what is certain before the handler runs, and makes the gate that the handler runs behind.
    ///
    /// It is open when nothing about the target could change the verdict, and when the operation names no row (it
    /// creates or lists) and may do that in the token's own project. Else the handler has to enforce against the row.
    pub(super) fn gate(&self, operation: &Operation<S>, caller: &Caller) -> Result<Gate, Fault> {
        let Some((rule, _)) = operation.policy else { return Ok(Gate::new(true)) };
        let verdict = self.policy.check(rule, caller, &Target::of_caller(caller));
        if verdict == Verdict::No {
            return Err(self.forbidden(rule));
        }
        let whatever = self.policy.check(rule, caller, &Target::unknown()) == Verdict::Yes;
        Ok(Gate::new(whatever || (verdict == Verdict::Yes && !operation.names_row())))
    }

    /// The path below the prefix where a client without a token learns about the service: its root where it has one.
    pub(super) fn door(&self) -> &'static str {
        if self.table.at("/").is_ok() {
            return "";
        }
        let open = self.routes.iter().flatten().find(|operation| {
            operation.open && operation.method == axum::http::Method::GET && !operation.names_row()
        });
        open.map_or("", |operation| operation.path)
    }

    pub(super) fn find(&self, path: &str) -> Option<(&[Arc<Operation<S>>], PathParams)> {
        let found = self.table.at(path).ok().or_else(|| {
            // Clients are careless with the slash at the end, upstream is forgiving.
            let trimmed = path.strip_suffix('/').filter(|trimmed| !trimmed.is_empty());
            trimmed.and_then(|trimmed| self.table.at(trimmed).ok())
        })?;
        let mut params = Vec::with_capacity(found.params.len());
        for (name, value) in found.params.iter() {
            params.push((name.to_owned(), percent_decode_str(value).decode_utf8().ok()?.into_owned()));
        }
        Some((self.routes.get(*found.value)?, PathParams(params)))
    }
}
