//! Changing an image: attributes by name, from a creation or a JSON patch.

use super::records::Image;
use super::schema::{CONTAINER_FORMATS, DISK_FORMATS};
use api_kit::Fault;
use serde_json::Value;

/// Attributes that only the service sets.
const READ_ONLY: [&str; 16] = [
    "status",
    "checksum",
    "os_hash_algo",
    "os_hash_value",
    "size",
    "virtual_size",
    "created_at",
    "updated_at",
    "self",
    "file",
    "schema",
    "locations",
    "direct_url",
    "deleted",
    "deleted_at",
    "stores",
];
/// Most free properties of an image.
const PROPERTIES: usize = 128;

fn forbidden(name: &str) -> Fault {
    Fault::forbidden(format!("Attribute '{name}' is read-only."))
}

fn invalid(name: &str, why: &str) -> Fault {
    Fault::bad_request(format!("Invalid value for attribute '{name}': {why}"))
}

/// Sets one attribute; `None` removes it.
///
/// # Errors
/// 400 for a value that does not fit, 403 for what a client must not set.
pub(super) fn set(image: &mut Image, name: &str, value: Option<&Value>) -> Result<(), Fault> {
    if READ_ONLY.contains(&name) || name == "id" {
        return Err(forbidden(name));
    }
    if name.starts_with("os_glance_") {
        return Err(Fault::forbidden(format!("Attribute '{name}' is reserved.")));
    }
    let text = || match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.chars().count() <= 255 => Ok(Some(text.clone())),
        Some(_) => Err(invalid(name, "a string of at most 255 characters is expected")),
    };
    let truth = || match value {
        Some(Value::Bool(truth)) => Ok(*truth),
        Some(_) | None => Err(invalid(name, "true or false is expected")),
    };
    let number = || {
        let number =
            value.and_then(Value::as_i64).filter(|number| (0..=i64::from(i32::MAX)).contains(number));
        number.ok_or_else(|| invalid(name, "an integer that is not negative is expected"))
    };
    let format = |known: &[&str], used: bool, old: &Option<String>| {
        let new = text()?;
        if new.as_deref().is_some_and(|new| !known.contains(&new)) {
            return Err(invalid(name, &format!("it must be one of {}", known.join(", "))));
        }
        if used && new != *old {
            return Err(Fault::forbidden(format!(
                "Attribute '{name}' can only be changed while the image is queued"
            )));
        }
        Ok(new)
    };
    let used = image.status != "queued";
    match name {
        "name" => image.name = text()?,
        "visibility" => match value.and_then(Value::as_str) {
            Some(new @ ("public" | "private" | "shared" | "community")) => {
                new.clone_into(&mut image.visibility)
            }
            Some(_) | None => {
                return Err(invalid(name, "it must be one of community, public, private, shared"));
            }
        },
        "protected" => image.protected = truth()?,
        "os_hidden" => image.os_hidden = truth()?,
        "min_disk" => image.min_disk = number()?,
        "min_ram" => image.min_ram = number()?,
        "owner" => {
            image.owner = text()?.ok_or_else(|| invalid(name, "a project id is expected"))?;
        }
        "disk_format" => image.disk_format = format(&DISK_FORMATS, used, &image.disk_format)?,
        "container_format" => {
            image.container_format = format(&CONTAINER_FORMATS, used, &image.container_format)?;
        }
        "tags" => {
            image.tags = match value {
                None => std::collections::BTreeSet::new(),
                Some(Value::Array(tags)) => tags
                    .iter()
                    .map(|tag| {
                        let tag = tag.as_str().filter(|tag| tag.chars().count() <= 255);
                        tag.map(str::to_owned)
                            .ok_or_else(|| invalid(name, "tags have at most 255 characters"))
                    })
                    .collect::<Result<_, _>>()?,
                Some(_) => return Err(invalid(name, "a list is expected")),
            };
        }
        free => match value {
            None => {
                image.properties.remove(free);
            }
            Some(Value::String(text)) if free.len() <= 255 && text.len() <= 65_535 => {
                image.properties.insert(free.to_owned(), text.clone());
            }
            Some(_) => {
                return Err(invalid(free, "a string is expected"));
            }
        },
    }
    if image.properties.len() > PROPERTIES || image.tags.len() > PROPERTIES {
        return Err(Fault::too_large(format!(
            "The limit has been exceeded on the number of allowed image properties or tags. Maximum: {PROPERTIES}."
        )));
    }
    Ok(())
}

fn known(image: &Image, name: &str) -> bool {
    let fixed = [
        "name",
        "visibility",
        "protected",
        "os_hidden",
        "min_disk",
        "min_ram",
        "owner",
        "disk_format",
        "container_format",
        "tags",
    ];
    fixed.contains(&name) || image.properties.contains_key(name)
}

/// Applies a JSON patch (`application/openstack-images-v2.1-json-patch`, also v2.0's spelling).
///
/// # Errors
/// 400 for a patch that is none, 409 for a path that is not there, and those of [`set`].
pub(super) fn apply(image: &mut Image, patch: &Value) -> Result<(), Fault> {
    let Value::Array(changes) = patch else {
        return Err(Fault::bad_request("Request body must be a JSON array of operation objects."));
    };
    for change in changes {
        let Value::Object(change) = change else {
            return Err(Fault::bad_request("Operations must be JSON objects."));
        };
        let field = |name: &str| change.get(name).and_then(Value::as_str);
        // Version 2.0 of the media type has the operation as the key of the path.
        let (op, path) = match (field("op"), field("path")) {
            (Some(op), Some(path)) => (op, path),
            (Some(_), None) | (None, Some(_) | None) => {
                let old = ["add", "replace", "remove"].into_iter().find_map(|op| Some((op, field(op)?)));
                old.ok_or_else(|| {
                    Fault::bad_request(
                        "Unable to find 'op' or 'path' in JSON Schema change. It must contain both.",
                    )
                })?
            }
        };
        let name = path
            .strip_prefix('/')
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Fault::bad_request(format!("Pointer `{}` does not start with \"/\".", cut(path))))?
            .replace("~1", "/")
            .replace("~0", "~");
        if name.contains('/') && !image.properties.contains_key(&name) {
            return Err(Fault::bad_request(format!(
                "Invalid JSON pointer for this resource: '{}'",
                cut(path)
            )));
        }
        let value = change.get("value");
        match op {
            "remove" => {
                if !known(image, &name) {
                    return Err(Fault::conflict(format!("Property {} does not exist.", cut(&name))));
                }
                if !image.properties.contains_key(&name) && name != "tags" {
                    return Err(Fault::forbidden(format!("Property '{}' may not be removed", cut(&name))));
                }
                set(image, &name, None)?;
            }
            "replace" | "add" => {
                let value = value.ok_or_else(|| {
                    Fault::bad_request(format!("Operation \"{op}\" requires a member named \"value\"."))
                })?;
                let is_read_only = READ_ONLY.contains(&name.as_str()) || name == "id";
                if op == "replace" && !is_read_only && !known(image, &name) {
                    return Err(Fault::conflict(format!("Property {} does not exist.", cut(&name))));
                }
                set(image, &name, Some(value))?;
            }
            other => {
                return Err(Fault::bad_request(format!(
                    "Operations must be one of add, replace, remove; '{}' is none",
                    cut(other)
                )));
            }
        }
    }
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}
