//! The published description of the API is a valid OpenAPI 3.1 document, judged by somebody else's validator.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::process::Command;
use tests::{cache, finished};

#[test]
fn the_document_is_valid_openapi() {
    // The binaries lie beside the folder of the tests.
    let own = std::env::current_exe().unwrap();
    let api = own.ancestors().nth(2).unwrap().join("api");
    assert!(api.exists(), "{} is not there: 'cargo build -p api' makes it", api.display());
    let document = finished(Command::new(api).arg("openapi")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("openapi.json");
    let python = cache().join("client/bin/python");
    let validate = |text: &str| {
        std::fs::write(&file, text).unwrap();
        finished(Command::new(&python).args(["-m", "openapi_spec_validator", "--schema", "3.1"]).arg(&file))
    };
    validate(&document).expect("see tests/requirements.txt for the validator");
    // The validator does look.
    validate(&document.replace("\"operationId\":\"identity:versions\",", "\"operationId\":5,")).unwrap_err();
    assert!(document.matches("operationId").count() > 300);
}
