//! What a token holds. It names the user, the scope and its own times; names, roles and whether all of that is still
//! good are looked up (and remembered) when it is used.

use super::keys::{KeyError, Keys, random};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Longest token text that is looked at.
const LONGEST: usize = 2048;

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Only for asking for another token.
    Unscoped,
    /// One project.
    Project(String),
    /// One domain.
    Domain(String),
    /// The whole system.
    System,
}

/// The content of a token. Times are microseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub user: String,
    /// For what.
    pub scope: Scope,
    /// Bits of [`METHODS`].
    pub methods: u8,
    /// When it was issued.
    pub issued_us: i64,
    /// When it ends.
    pub expires_us: i64,
    /// Its own audit id, then that of the first token of its chain.
    pub audit: Vec<[u8; 16]>,
    /// The application credential that it was made from.
    pub appcred: Option<String>,
}

/// Ways to prove who one is, in the order of the bits.
pub const METHODS: [&str; 3] = ["password", "token", "application_credential"];

impl Token {
    /// Names of the methods.
    #[must_use]
    pub fn method_names(&self) -> Vec<String> {
        METHODS
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.methods & (1 << bit) != 0)
            .map(|(_, name)| (*name).to_owned())
            .collect()
    }

    /// The audit ids as text.
    #[must_use]
    pub fn audit_names(&self) -> Vec<String> {
        self.audit.iter().map(|id| URL_SAFE_NO_PAD.encode(id)).collect()
    }

    /// The token as a text.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn seal(&self, keys: &Keys) -> Result<String, KeyError> {
        let mut out = vec![1u8, self.methods];
        put(&mut out, &self.user);
        let (kind, id) = match &self.scope {
            Scope::Unscoped => (0, ""),
            Scope::Project(id) => (1, id.as_str()),
            Scope::Domain(id) => (2, id.as_str()),
            Scope::System => (3, ""),
        };
        out.push(kind);
        put(&mut out, id);
        out.extend_from_slice(&self.issued_us.to_be_bytes());
        out.extend_from_slice(&self.expires_us.to_be_bytes());
        put(&mut out, self.appcred.as_deref().unwrap_or_default());
        for id in &self.audit {
            out.extend_from_slice(id);
        }
        Ok(URL_SAFE_NO_PAD.encode(keys.seal(&out)?))
    }

    /// Opens a token's text; `None` when it is not one of ours. Its times are not looked at.
    #[must_use]
    pub fn unseal(keys: &Keys, text: &str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let plain = keys.unseal(&URL_SAFE_NO_PAD.decode(text).ok()?)?;
        let mut rest = plain.as_slice();
        let [1, methods] = *take::<2>(&mut rest)? else { return None };
        let user = get(&mut rest)?;
        let [kind] = *take::<1>(&mut rest)?;
        let id = get(&mut rest)?;
        let scope = match kind {
            0 => Scope::Unscoped,
            1 => Scope::Project(id),
            2 => Scope::Domain(id),
            3 => Scope::System,
            _ => return None,
        };
        let issued_us = i64::from_be_bytes(*take::<8>(&mut rest)?);
        let expires_us = i64::from_be_bytes(*take::<8>(&mut rest)?);
        let appcred = Some(get(&mut rest)?).filter(|id| !id.is_empty());
        let mut audit = Vec::new();
        while let Some(id) = take::<16>(&mut rest) {
            audit.push(*id);
        }
        (rest.is_empty() && !audit.is_empty()).then_some(Self {
            user,
            scope,
            methods,
            issued_us,
            expires_us,
            audit,
            appcred,
        })
    }
}

/// A fresh audit id.
///
/// # Errors
/// When there are no random bytes.
pub fn audit_id() -> Result<[u8; 16], KeyError> {
    random()
}

/// Ids are mostly 32 hex digits, which fit 16 bytes; `default` and others go as text.
fn put(out: &mut Vec<u8>, id: &str) {
    let hex = id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match uuid::Uuid::parse_str(id) {
        Ok(uuid) if hex => {
            out.push(0xff);
            out.extend_from_slice(uuid.as_bytes());
        }
        Ok(_) | Err(_) => {
            let bytes = id.as_bytes();
            let length = u8::try_from(bytes.len().min(0xfe)).unwrap_or(0xfe);
            out.push(length);
            out.extend_from_slice(&bytes[..usize::from(length)]);
        }
    }
}

fn get(rest: &mut &[u8]) -> Option<String> {
    let [length] = *take::<1>(rest)?;
    if length == 0xff {
        return Some(uuid::Uuid::from_bytes(*take::<16>(rest)?).simple().to_string());
    }
    let (text, tail) = rest.split_at_checked(usize::from(length))?;
    *rest = tail;
    String::from_utf8(text.to_vec()).ok()
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> Keys {
        Keys::open(tempfile::tempdir().unwrap().path()).unwrap()
    }

    proptest! {
        #[test]
        fn a_token_reads_back_as_it_was_written(
            user in "[0-9a-f]{32}|[a-z-]{1,64}|[0-9A-F]{32}",
            kind in 0u8..4,
            id in "[0-9a-f]{32}|default",
            times in any::<(i64, i64)>(),
            audit in proptest::collection::vec(any::<[u8; 16]>(), 1..3),
            appcred in proptest::option::of("[0-9a-f]{32}"),
        ) {
            let scope = match kind {
                0 => Scope::Unscoped,
                1 => Scope::Project(id),
                2 => Scope::Domain(id),
                _ => Scope::System,
            };
            let token = Token {
                user, scope, methods: 3, issued_us: times.0, expires_us: times.1, audit, appcred,
            };
            let keys = keys();
            let text = token.seal(&keys).unwrap();
            prop_assert!(text.len() < 400);
            prop_assert_eq!(Token::unseal(&keys, &text), Some(token));
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in ".{0,300}") {
            prop_assert_eq!(Token::unseal(&keys(), &text), None);
        }
    }
}
