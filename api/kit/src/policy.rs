//! Policy: oslo.policy's rule language, so that upstream's default rules can be taken over word by word and an
//! operator's overrides read as they know them.
//!
//! A check is a tree of `and`, `or`, `not` over `role:x`, `rule:x` and comparisons of a credential with a target
//! attribute (`project_id:%(project_id)s`). Before a handler runs only part of the target is known, so checks are
//! three-valued: `Maybe` lets the request through to the handler, which must then enforce against the row.

use crate::Caller;
use std::borrow::Cow;
use std::collections::HashMap;

/// Named rules with their texts.
pub type Rules = &'static [(&'static str, &'static str)];

/// Rules that every service may refer to.
pub const COMMON: Rules = &[
    ("context_is_admin", "role:admin"),
    ("admin_api", "rule:context_is_admin"),
    ("admin_required", "role:admin"),
    ("admin_only", "rule:context_is_admin"),
    ("service_api", "role:service"),
    ("owner", "user_id:%(user_id)s"),
    ("admin_or_owner", "rule:context_is_admin or project_id:%(project_id)s"),
    ("project_manager_api", "role:manager and project_id:%(project_id)s"),
    ("project_member_api", "role:member and project_id:%(project_id)s"),
    ("project_reader_api", "role:reader and project_id:%(project_id)s"),
    ("project_manager_or_admin", "rule:project_manager_api or rule:context_is_admin"),
    ("project_member_or_admin", "rule:project_member_api or rule:context_is_admin"),
    ("project_reader_or_admin", "rule:project_reader_api or rule:context_is_admin"),
];

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed.
    Yes,
    /// Depends on attributes of the target that are not known.
    Maybe,
    /// Denied.
    No,
}

impl Verdict {
    fn from(truth: bool) -> Self {
        if truth { Self::Yes } else { Self::No }
    }
    fn rank(self) -> u8 {
        match self {
            Self::No => 0,
            Self::Maybe => 1,
            Self::Yes => 2,
        }
    }
}

/// What an operation touches, as (attribute, value).
#[derive(Debug, Clone, Default)]
pub struct Target<'a> {
    attributes: Vec<(&'static str, Cow<'a, str>)>,
    partial: bool,
}

impl<'a> Target<'a> {
    /// A target without attributes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A target that belongs to a project.
    #[must_use]
    pub fn project(id: impl Into<Cow<'a, str>>) -> Self {
        let id = id.into();
        Self::new().with("project_id", id.clone()).with("tenant_id", id)
    }

    /// Its user.
    #[must_use]
    pub fn user(self, id: impl Into<Cow<'a, str>>) -> Self {
        self.with("user_id", id)
    }

    /// Its domain.
    #[must_use]
    pub fn domain(self, id: impl Into<Cow<'a, str>>) -> Self {
        self.with("domain_id", id)
    }

    /// Any attribute, by the name that rules use: `target.user.id`.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'a, str>>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// What is known before a handler runs: the token's own project and user; anything else may still turn up.
    pub(crate) fn of_caller(caller: &'a Caller) -> Self {
        let mut target = Self { attributes: Vec::new(), partial: true };
        if let Some(project) = &caller.project_id {
            target = target.with("project_id", project).with("tenant_id", project);
        }
        target.with("user_id", &caller.user_id)
    }

    /// Nothing is known of it.
    pub(crate) fn unknown() -> Self {
        Self { attributes: Vec::new(), partial: true }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| &**value)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Check {
    Constant(bool),
    And(Vec<Check>),
    Or(Vec<Check>),
    Not(Box<Check>),
    Rule(String),
    Role(Term),
    Compare(Term, Term),
}

#[derive(Debug, Clone, PartialEq)]
enum Term {
    /// The word itself.
    Literal(String),
    /// `%(name)s`: an attribute of the target.
    Target(String),
    /// An attribute of the caller.
    Credential(String),
}

/// A rule's text is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy rule '{rule}' is wrong: {why}")]
pub struct BadRule {
    /// Which rule.
    pub rule: String,
    /// What is wrong.
    pub why: String,
}

/// The rules of one service, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: HashMap<Cow<'static, str>, Check>,
}

impl Policy {
    /// Adds (or replaces) a rule.
    ///
    /// # Errors
    /// When the text is not in the rule language.
    pub fn add(&mut self, name: impl Into<Cow<'static, str>>, text: &str) -> Result<(), BadRule> {
        let name = name.into();
        let check = parse(text).map_err(|why| BadRule { rule: name.to_string(), why })?;
        self.rules.insert(name, check);
        Ok(())
    }

    /// Whether there is such a rule.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.rules.contains_key(name)
    }

    /// Finds references to rules that do not exist, and rules that refer to themselves.
    ///
    /// # Errors
    /// The first of them.
    pub fn verify(&self) -> Result<(), BadRule> {
        for (name, check) in &self.rules {
            self.walk(name, check, 0)?;
        }
        Ok(())
    }

    fn walk(&self, name: &str, check: &Check, depth: u32) -> Result<(), BadRule> {
        if depth > 32 {
            return Err(BadRule { rule: name.to_owned(), why: "it refers to itself".to_owned() });
        }
        match check {
            Check::Constant(_) | Check::Role(_) | Check::Compare(_, _) => Ok(()),
            Check::And(parts) | Check::Or(parts) => {
                parts.iter().try_for_each(|part| self.walk(name, part, depth + 1))
            }
            Check::Not(part) => self.walk(name, part, depth + 1),
            Check::Rule(other) => match self.rules.get(other.as_str()) {
                Some(check) => self.walk(name, check, depth + 1),
                None => Err(BadRule { rule: name.to_owned(), why: format!("there is no rule '{other}'") }),
            },
        }
    }

    /// What the rule says. A rule that does not exist denies.
    #[must_use]
    pub fn check(&self, rule: &str, caller: &Caller, target: &Target<'_>) -> Verdict {
        match self.rules.get(rule) {
            Some(check) => self.eval(check, caller, target, 0),
            None => Verdict::No,
        }
    }

    fn eval(&self, check: &Check, caller: &Caller, target: &Target<'_>, depth: u32) -> Verdict {
        if depth > 64 {
            return Verdict::No;
        }
        let sub = |part: &Check| self.eval(part, caller, target, depth + 1);
        match check {
            Check::Constant(truth) => Verdict::from(*truth),
            Check::And(parts) => parts.iter().map(sub).min_by_key(|v| v.rank()).unwrap_or(Verdict::Yes),
            Check::Or(parts) => parts.iter().map(sub).max_by_key(|v| v.rank()).unwrap_or(Verdict::No),
            Check::Not(part) => match sub(part) {
                Verdict::Yes => Verdict::No,
                Verdict::No => Verdict::Yes,
                Verdict::Maybe => Verdict::Maybe,
            },
            Check::Rule(name) => match self.rules.get(name.as_str()) {
                Some(check) => sub(check),
                None => Verdict::No,
            },
            Check::Role(term) => match value(term, caller, target) {
                Known::Value(name) => Verdict::from(caller.has_role(&name)),
                Known::Never => Verdict::No,
                Known::NotYet => Verdict::Maybe,
            },
            Check::Compare(left, right) => {
                match (value(left, caller, target), value(right, caller, target)) {
                    (Known::Value(left), Known::Value(right)) => Verdict::from(left == right),
                    (Known::Never, _) | (_, Known::Never) => Verdict::No,
                    (Known::NotYet, Known::Value(_) | Known::NotYet) | (Known::Value(_), Known::NotYet) => {
                        Verdict::Maybe
                    }
                }
            }
        }
    }
}

enum Known<'a> {
    Value(Cow<'a, str>),
    Never,
    NotYet,
}

fn value<'a>(term: &'a Term, caller: &'a Caller, target: &'a Target<'_>) -> Known<'a> {
    let of = |value: Option<&'a str>| value.map_or(Known::Never, |value| Known::Value(value.into()));
    match term {
        Term::Literal(text) => of(Some(text)),
        Term::Target(name) => match target.get(name) {
            Some(value) => of(Some(value)),
            None if target.partial => Known::NotYet,
            None => Known::Never,
        },
        Term::Credential(name) => match name.as_str() {
            "user_id" => of(Some(&caller.user_id)),
            "project_id" | "tenant_id" | "tenant" => of(caller.project_id.as_deref()),
            "domain_id" | "token.domain.id" => of(caller.domain_id.as_deref()),
            "user_domain_id" | "token.user.domain.id" => of(Some(&caller.user_domain_id)),
            "project_domain_id" | "token.project.domain.id" => of(caller.project_domain_id.as_deref()),
            "system_scope" => of(caller.system.then_some("all")),
            "is_admin" => of(Some(if caller.is_admin { "True" } else { "False" })),
            _ => Known::Never,
        },
    }
}

fn tokens(text: &str) -> Vec<String> {
    // `%(name)s` holds parentheses of its own, so those only count at the ends of a word.
    let mut out = Vec::new();
    for word in text.split_whitespace() {
        let mut word = word;
        while let Some(rest) = word.strip_prefix('(') {
            out.push("(".to_owned());
            word = rest;
        }
        let mut closing = 0;
        while let Some(rest) = word.strip_suffix(')') {
            closing += 1;
            word = rest;
        }
        if !word.is_empty() {
            out.push(word.to_owned());
        }
        out.extend(std::iter::repeat_n(")".to_owned(), closing));
    }
    out
}

fn parse(text: &str) -> Result<Check, String> {
    if text.trim().is_empty() {
        return Ok(Check::Constant(true));
    }
    let tokens = tokens(text);
    let mut at = 0;
    let check = parse_or(&tokens, &mut at, 0)?;
    match tokens.get(at) {
        None => Ok(check),
        Some(rest) => Err(format!("'{rest}' is not expected there")),
    }
}

fn parse_or(tokens: &[String], at: &mut usize, depth: u32) -> Result<Check, String> {
    let mut parts = vec![parse_and(tokens, at, depth)?];
    while tokens.get(*at).is_some_and(|token| token.eq_ignore_ascii_case("or")) {
        *at += 1;
        parts.push(parse_and(tokens, at, depth)?);
    }
    Ok(if parts.len() == 1 { parts.remove(0) } else { Check::Or(parts) })
}

fn parse_and(tokens: &[String], at: &mut usize, depth: u32) -> Result<Check, String> {
    let mut parts = vec![parse_not(tokens, at, depth)?];
    while tokens.get(*at).is_some_and(|token| token.eq_ignore_ascii_case("and")) {
        *at += 1;
        parts.push(parse_not(tokens, at, depth)?);
    }
    Ok(if parts.len() == 1 { parts.remove(0) } else { Check::And(parts) })
}

fn parse_not(tokens: &[String], at: &mut usize, depth: u32) -> Result<Check, String> {
    if depth > 32 {
        return Err("it is nested too deeply".to_owned());
    }
    let token = tokens.get(*at).ok_or_else(|| "it ends too early".to_owned())?;
    *at += 1;
    if token.eq_ignore_ascii_case("not") {
        return Ok(Check::Not(Box::new(parse_not(tokens, at, depth + 1)?)));
    }
    if token == "(" {
        let inner = parse_or(tokens, at, depth + 1)?;
        if tokens.get(*at).is_none_or(|token| token != ")") {
            return Err("a ')' is missing".to_owned());
        }
        *at += 1;
        return Ok(inner);
    }
    leaf(token)
}

fn leaf(token: &str) -> Result<Check, String> {
    match token {
        "@" => return Ok(Check::Constant(true)),
        "!" => return Ok(Check::Constant(false)),
        _ => (),
    }
    let quoted = token.strip_prefix('\'').and_then(|rest| rest.split_once("':"));
    let (left, right) = match quoted {
        Some((left, right)) => (Term::Literal(left.to_owned()), right),
        None => {
            let (left, right) =
                token.split_once(':').ok_or_else(|| format!("'{token}' is not KIND:VALUE"))?;
            match left {
                "rule" => return Ok(Check::Rule(right.to_owned())),
                "role" => return Ok(Check::Role(term(right))),
                "True" | "False" | "None" => (Term::Literal(left.to_owned()), right),
                "http" | "https" => return Err("checks by HTTP are not supported".to_owned()),
                _ => (Term::Credential(left.to_owned()), right),
            }
        }
    };
    Ok(Check::Compare(left, term(right)))
}

fn term(text: &str) -> Term {
    match text.strip_prefix("%(").and_then(|rest| rest.strip_suffix(")s")) {
        Some(name) => Term::Target(name.to_owned()),
        None => Term::Literal(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(text: &str, caller: &Caller, target: &Target<'_>) -> Verdict {
        let mut policy = Policy::default();
        for (name, text) in COMMON {
            policy.add(*name, text).unwrap();
        }
        policy.add("asked", text).unwrap();
        policy.verify().unwrap();
        policy.check("asked", caller, target)
    }

    fn member() -> Caller {
        Caller {
            user_id: "u1".into(),
            project_id: Some("p1".into()),
            roles: vec!["member".into(), "reader".into()],
            ..Caller::default()
        }
    }

    #[test]
    fn rules_mean_what_upstream_means_by_them() {
        let (caller, own, other) = (member(), Target::project("p1"), Target::project("p2"));
        assert_eq!(ask("rule:project_member_or_admin", &caller, &own), Verdict::Yes);
        assert_eq!(ask("rule:project_member_or_admin", &caller, &other), Verdict::No);
        assert_eq!(
            ask("(role:reader and project_id:%(project_id)s) or role:admin", &caller, &own),
            Verdict::Yes
        );
        assert_eq!(ask("not role:member or !", &caller, &own), Verdict::No);
        assert_eq!(ask("", &caller, &other), Verdict::Yes);
        assert_eq!(
            ask("'public':%(visibility)s", &caller, &Target::new().with("visibility", "public")),
            Verdict::Yes
        );
        assert_eq!(
            ask("None:%(domain_id)s", &caller, &Target::new().with("domain_id", "None")),
            Verdict::Yes
        );
        assert_eq!(ask("role:MEMBER", &caller, &own), Verdict::Yes);
        // An attribute that the target lacks never matches.
        assert_eq!(ask("user_id:%(target.user.id)s", &caller, &own), Verdict::No);
        assert_eq!(ask("system_scope:all", &caller, &own), Verdict::No);
    }

    #[test]
    fn before_the_row_is_known_only_certain_denials_deny() {
        let caller = member();
        let target = Target::of_caller(&caller);
        assert_eq!(ask("role:admin or user_id:%(target.user.id)s", &caller, &target), Verdict::Maybe);
        assert_eq!(ask("role:admin and user_id:%(target.user.id)s", &caller, &target), Verdict::No);
        assert_eq!(ask("not user_id:%(target.user.id)s", &caller, &target), Verdict::Maybe);
    }

    #[test]
    fn wrong_rules_are_named() {
        for bad in ["role", "(role:a", "role:a role:b", "role:a and", "http://x:y"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let mut policy = Policy::default();
        policy.add("a", "rule:b").unwrap();
        assert!(policy.verify().unwrap_err().to_string().contains("'b'"));
        policy.add("b", "rule:a").unwrap();
        assert!(policy.verify().unwrap_err().why.contains("itself"));
    }
}
