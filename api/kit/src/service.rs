//! The declaration of a service.

use crate::policy::Rules;
use crate::{FaultStyle, Micro, MicroRange, Operation};

/// What happens to query parameters that an operation does not declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownQuery {
    /// Nothing.
    Ignore,
    /// 400.
    Refuse,
    /// 400 from this microversion on.
    RefuseFrom(Micro),
}

/// A REST service.
pub struct Service<S> {
    /// `compute`
    pub name: &'static str,
    /// Its type in the catalog: `compute`, `object-store`.
    pub kind: &'static str,
    /// First path segment: `/compute`.
    pub prefix: &'static str,
    /// Its microversions, if it has any.
    pub micro: Option<MicroRange>,
    /// How its errors look.
    pub faults: FaultStyle,
    /// What it does with undeclared query parameters.
    pub unknown_query: UnknownQuery,
    /// Named policy rules that its operations' rules refer to, beyond [`crate::policy::COMMON`], and rules that
    /// handlers ask for with `call.may`.
    pub rules: Rules,
    /// What it can do.
    pub operations: Vec<Operation<S>>,
}

impl<S> Service<S> {
    /// A service that does nothing yet, ignores unknown query parameters and has no microversions.
    #[must_use]
    pub fn new(name: &'static str, kind: &'static str, prefix: &'static str, faults: FaultStyle) -> Self {
        Self {
            name,
            kind,
            prefix,
            micro: None,
            faults,
            unknown_query: UnknownQuery::Ignore,
            rules: &[],
            operations: Vec::new(),
        }
    }

    /// Sets its microversions.
    #[must_use]
    pub fn micro(mut self, range: MicroRange) -> Self {
        self.micro = Some(range);
        self
    }

    /// Sets what happens to undeclared query parameters.
    #[must_use]
    pub fn unknown_query(mut self, what: UnknownQuery) -> Self {
        self.unknown_query = what;
        self
    }

    /// Sets its named rules.
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Adds operations.
    #[must_use]
    pub fn operations(mut self, operations: impl IntoIterator<Item = Operation<S>>) -> Self {
        self.operations.extend(operations);
        self
    }
}
