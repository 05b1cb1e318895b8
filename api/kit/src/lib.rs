//! The kit that every REST service is declared with.
//!
//! A service is a list of [`Operation`]s: method, path, version range, policy rule, body schema and answer codes on one
//! screen. Router, policy enforcement, schema check, OpenAPI document and the coverage test all read the same
//! declarations, so that none of them can forget an operation. A service writes only its handlers.
//!
//! A request passes: route, authenticate, rate limit, microversion, policy (with what is known by then), body, schema,
//! then the handler, which enforces the policy again against the rows it touches ([`Call::enforce`]).

pub mod call;
pub mod caller;
pub mod coverage;
pub mod fault;
pub mod list;
pub mod micro;
pub mod openapi;
pub mod operation;
pub mod policy;
pub mod quota;
pub mod rate;
pub mod reply;
pub mod router;
pub mod schema;
pub mod service;
pub mod time;

pub use call::{Call, PathParams, Query};
pub use caller::{Authenticate, BoxFuture, Caller};
pub use fault::{Fault, FaultStyle, Outcome};
pub use list::{Dir, Filter, ListSpec, Page, SortKey};
pub use micro::{Micro, MicroRange};
pub use operation::Operation;
pub use policy::Target;
pub use reply::Reply;
pub use router::{Connection, Router, Settings};
pub use service::{Service, UnknownQuery};
