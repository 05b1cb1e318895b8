//! Microversions: what a client asks for in `OpenStack-API-Version` (or a service's older header), and the answer.

use axum::http::{HeaderMap, HeaderValue};
use std::fmt;
use std::str::FromStr;

/// A microversion, `2.79`. Services without microversions see `Micro(0, 0)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micro(pub u16, pub u16);

impl fmt::Display for Micro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for Micro {
    type Err = ();
    /// Digits, a dot, digits without a leading zero: what upstream's pattern accepts.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        let number = |text: &str| {
            let plain = !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_digit())
                && (text == "0" || !text.starts_with('0'));
            if plain { text.parse::<u16>().map_err(|_| ()) } else { Err(()) }
        };
        Ok(Self(number(major)?, number(minor)?))
    }
}

/// The versions that a service speaks.
#[derive(Debug, Clone, Copy)]
pub struct MicroRange {
    /// The word before the version in `OpenStack-API-Version`: `compute`, `placement`, `volume`.
    pub word: &'static str,
    /// An older header with only the version in it, as nova's `X-OpenStack-Nova-API-Version`.
    pub legacy: Option<&'static str>,
    /// Oldest, and the one that is spoken when the client asks for none.
    pub min: Micro,
    /// Newest.
    pub max: Micro,
}

/// Why no version could be agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disagree {
    /// Not a version at all: 400.
    Malformed(String),
    /// A version that is not spoken: 406.
    Unsupported(String),
}

impl MicroRange {
    /// The version to speak with this client.
    ///
    /// # Errors
    /// When what it asks for is malformed or not spoken.
    pub fn negotiate(&self, headers: &HeaderMap) -> Result<Micro, Disagree> {
        let Some(asked) = self.asked(headers) else { return Ok(self.min) };
        if asked.eq_ignore_ascii_case("latest") {
            return Ok(self.max);
        }
        let version: Micro = asked.parse().map_err(|()| Disagree::Malformed(asked.clone()))?;
        if version < self.min || version > self.max {
            return Err(Disagree::Unsupported(asked));
        }
        Ok(version)
    }

    fn asked(&self, headers: &HeaderMap) -> Option<String> {
        for value in headers.get_all("openstack-api-version") {
            for part in value.to_str().unwrap_or_default().split(',') {
                let mut words = part.split_whitespace();
                if words.next().is_some_and(|word| word.eq_ignore_ascii_case(self.word)) {
                    return Some(words.next().unwrap_or_default().to_owned());
                }
            }
        }
        let value = headers.get(self.legacy?)?;
        Some(value.to_str().unwrap_or_default().trim().to_owned())
    }

    /// Adds the version headers of an answer.
    pub fn mark(&self, version: Micro, headers: &mut HeaderMap) {
        let set = |headers: &mut HeaderMap, name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(axum::http::HeaderName::from_static(name), value);
            }
        };
        set(headers, "openstack-api-version", format!("{} {version}", self.word));
        headers.append("vary", HeaderValue::from_static("OpenStack-API-Version"));
        if let Some(name) = self.legacy {
            if let (Ok(header), Ok(value)) = (
                axum::http::HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_str(&version.to_string()),
            ) {
                headers.insert(header, value);
            }
            headers.append("vary", HeaderValue::from_static(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOVA: MicroRange = MicroRange {
        word: "compute",
        legacy: Some("X-OpenStack-Nova-API-Version"),
        min: Micro(2, 1),
        max: Micro(2, 79),
    };

    fn ask(pairs: &[(&'static str, &'static str)]) -> Result<Micro, Disagree> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        NOVA.negotiate(&headers)
    }

    #[test]
    fn the_client_gets_what_it_asks_for_or_a_reason() {
        assert_eq!(ask(&[]), Ok(Micro(2, 1)));
        assert_eq!(ask(&[("openstack-api-version", "volume 3.50, compute 2.37")]), Ok(Micro(2, 37)));
        assert_eq!(ask(&[("openstack-api-version", "compute latest")]), Ok(Micro(2, 79)));
        assert_eq!(ask(&[("x-openstack-nova-api-version", "2.60")]), Ok(Micro(2, 60)));
        assert_eq!(ask(&[("openstack-api-version", "volume 3.50")]), Ok(Micro(2, 1)));
        assert_eq!(
            ask(&[("openstack-api-version", "compute 2.80")]),
            Err(Disagree::Unsupported("2.80".into()))
        );
        for bad in
            ["compute 2", "compute x.y", "compute 2.01", "compute 2.-1", "compute", "compute 2.99999999"]
        {
            assert!(matches!(ask(&[("openstack-api-version", bad)]), Err(Disagree::Malformed(_))), "{bad}");
        }
    }
}
