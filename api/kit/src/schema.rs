//! Request bodies against JSON schemas, with refusals in the words that clients know from upstream.

use crate::{Fault, FaultStyle};
use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{Draft, ValidationError, Validator};
use serde_json::Value;
use std::fmt::Write;
use std::sync::OnceLock;

/// A schema, compiled at its first use.
pub(crate) struct Schema {
    text: &'static str,
    compiled: OnceLock<Result<Validator, String>>,
}

impl Schema {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, compiled: OnceLock::new() }
    }

    pub(crate) fn text(&self) -> &'static str {
        self.text
    }

    /// The compiled schema; the error says why it does not compile (the coverage test finds it).
    pub(crate) fn validator(&self) -> Result<&Validator, String> {
        self.compiled
            .get_or_init(|| {
                let schema: Value =
                    serde_json::from_str(self.text).map_err(|error| format!("not JSON: {error}"))?;
                jsonschema::options()
                    .with_draft(Draft::Draft7)
                    .should_validate_formats(true)
                    .with_format("uuid", |text: &str| uuid::Uuid::parse_str(text).is_ok())
                    .build(&schema)
                    .map_err(|error| format!("not a schema: {error}"))
            })
            .as_ref()
            .map_err(Clone::clone)
    }

    /// Checks a body.
    pub(crate) fn check(&self, body: &Value, style: FaultStyle) -> Result<(), Fault> {
        let validator = self.validator().map_err(Fault::internal)?;
        let Err(error) = validator.validate(body) else { return Ok(()) };
        Err(Fault::bad_request(explain(&error, style)))
    }
}

/// Longest piece of the client's own input that an answer repeats.
const REPEATED: usize = 300;

fn explain(error: &ValidationError<'_>, style: FaultStyle) -> String {
    let message = words(error);
    let path: Vec<String> = error.instance_path().as_str().split('/').skip(1).map(str::to_owned).collect();
    let Some(last) = path.last() else {
        return match style {
            FaultStyle::Placement => format!("JSON does not validate: {message}"),
            FaultStyle::Glance => format!("Provided object does not match schema: {message}"),
            FaultStyle::Keystone
            | FaultStyle::Nova
            | FaultStyle::Neutron
            | FaultStyle::Cinder
            | FaultStyle::Swift => message,
        };
    };
    match style {
        FaultStyle::Nova | FaultStyle::Cinder => format!(
            "Invalid input for field/attribute {last}. Value: {}. {message}",
            short(&python(error.instance(), true))
        ),
        // The value may be a password: identity does not repeat it.
        FaultStyle::Keystone => format!("Invalid input for field '{}': {message}", path.join("/")),
        FaultStyle::Neutron => format!("Invalid input for {last}. Reason: {message}."),
        FaultStyle::Placement => {
            format!("JSON does not validate: {message} Failed validating in '{}'", path.join("/"))
        }
        FaultStyle::Glance => {
            format!("Provided object does not match schema: {message} in '{}'", path.join("/"))
        }
        FaultStyle::Swift => message,
    }
}

/// The refusal in the words of Python's jsonschema, which clients and tests know.
fn words(error: &ValidationError<'_>) -> String {
    let value = || short(&python(error.instance(), false));
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            let names: Vec<String> = unexpected.iter().take(10).map(|name| short(&quote(name))).collect();
            let verb = if names.len() == 1 { "was" } else { "were" };
            format!("Additional properties are not allowed ({} {verb} unexpected)", names.join(", "))
        }
        ValidationErrorKind::Required { property } => {
            format!("{} is a required property", python(property, false))
        }
        ValidationErrorKind::Type { kind } => {
            let names: Vec<String> = match kind {
                TypeKind::Single(one) => vec![format!("'{one}'")],
                TypeKind::Multiple(several) => several.iter().map(|one| format!("'{one}'")).collect(),
            };
            format!("{} is not of type {}", value(), names.join(", "))
        }
        ValidationErrorKind::MinLength { .. } | ValidationErrorKind::MinItems { .. } => {
            format!("{} is too short", value())
        }
        ValidationErrorKind::MaxLength { .. } | ValidationErrorKind::MaxItems { .. } => {
            format!("{} is too long", value())
        }
        ValidationErrorKind::Pattern { pattern } => {
            format!("{} does not match {}", value(), quote(pattern))
        }
        ValidationErrorKind::Enum { options } => {
            format!("{} is not one of {}", value(), python(options, false))
        }
        ValidationErrorKind::Format { format } => format!("{} is not a '{format}'", value()),
        ValidationErrorKind::Minimum { limit } => {
            format!("{} is less than the minimum of {limit}", value())
        }
        ValidationErrorKind::Maximum { limit } => {
            format!("{} is greater than the maximum of {limit}", value())
        }
        ValidationErrorKind::MinProperties { .. } => {
            format!("{} does not have enough properties", value())
        }
        ValidationErrorKind::MaxProperties { .. } => format!("{} has too many properties", value()),
        ValidationErrorKind::UniqueItems => format!("{} has non-unique elements", value()),
        ValidationErrorKind::AnyOf { .. } | ValidationErrorKind::OneOfNotValid { .. } => {
            format!("{} is not valid under any of the given schemas", value())
        }
        ValidationErrorKind::OneOfMultipleValid { .. } => {
            format!("{} is valid under each of several schemas of which only one may match", value())
        }
        ValidationErrorKind::Constant { expected_value } => {
            format!("{} was expected", python(expected_value, false))
        }
        // The remaining keywords are rare in these schemas; the library's own words do.
        other => format!("{} does not fit '{}'", value(), other.keyword()),
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(REPEATED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn quote(text: &str) -> String {
    if text.contains('\'') && !text.contains('"') {
        return format!("\"{text}\"");
    }
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"))
}

/// Writes a value as Python would; `bare` leaves a top-level string without quotes.
fn python(value: &Value, bare: bool) -> String {
    let mut out = String::new();
    write_python(value, bare, &mut out, 0);
    out
}

fn write_python(value: &Value, bare: bool, out: &mut String, depth: u32) {
    // What is repeated is cut anyway: do not write out megabytes first.
    if out.len() > 4 * REPEATED || depth > 16 {
        return;
    }
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(truth) => out.push_str(if *truth { "True" } else { "False" }),
        Value::Number(number) => {
            // Writing into a String cannot fail.
            let _ = write!(out, "{number}");
        }
        Value::String(text) => {
            let text: String = text.chars().take(2 * REPEATED).collect();
            out.push_str(&if bare { text } else { quote(&text) });
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_python(item, false, out, depth + 1);
            }
            out.push(']');
        }
        Value::Object(items) => {
            out.push('{');
            for (index, (key, item)) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                out.push_str(&short(&quote(key)));
                out.push_str(": ");
                write_python(item, false, out, depth + 1);
            }
            out.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SERVER: &str = r#"{"type": "object", "properties": {"server": {"type": "object",
        "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 255},
            "min_count": {"type": ["integer", "string"]}, "imageRef": {"format": "uuid"},
            "OS-DCF:diskConfig": {"enum": ["AUTO", "MANUAL"]}},
        "required": ["name"], "additionalProperties": false}}, "required": ["server"]}"#;

    fn refuse(style: FaultStyle, body: Value) -> String {
        Schema::new(SERVER).check(&body, style).unwrap_err().message
    }

    #[test]
    fn refusals_read_as_upstream_writes_them() {
        let nova = |body| refuse(FaultStyle::Nova, body);
        assert_eq!(nova(json!({})), "'server' is a required property");
        assert_eq!(
            nova(json!({"server": {}})),
            "Invalid input for field/attribute server. Value: {}. 'name' is a required property"
        );
        assert_eq!(
            nova(json!({"server": {"name": ""}})),
            "Invalid input for field/attribute name. Value: . '' is too short"
        );
        assert_eq!(
            nova(json!({"server": {"name": "a", "x": 1}})),
            "Invalid input for field/attribute server. Value: {'name': 'a', 'x': 1}. Additional properties are not allowed ('x' was unexpected)"
        );
        assert_eq!(
            nova(json!({"server": {"name": "a", "min_count": true}})),
            "Invalid input for field/attribute min_count. Value: True. True is not of type 'integer', 'string'"
        );
        assert_eq!(
            refuse(FaultStyle::Keystone, json!({"server": {"name": 5}})),
            "Invalid input for field 'server/name': 5 is not of type 'string'"
        );
        assert_eq!(
            nova(json!({"server": {"name": "a", "imageRef": "x"}})),
            "Invalid input for field/attribute imageRef. Value: x. 'x' is not a 'uuid'"
        );
        assert_eq!(
            nova(json!({"server": {"name": "a", "OS-DCF:diskConfig": "no"}})),
            "Invalid input for field/attribute OS-DCF:diskConfig. Value: no. 'no' is not one of ['AUTO', 'MANUAL']"
        );
    }

    #[test]
    fn a_huge_value_is_not_repeated_in_full() {
        let message = refuse(FaultStyle::Nova, json!({"server": {"name": "ä".repeat(10_000)}}));
        assert!(message.len() < 2000 && message.ends_with("is too long"), "{}", message.len());
    }
}
