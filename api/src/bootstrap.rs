//! First steps of a new cloud.

use api_kit::Caller;
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::PathBuf;

/// What the services' `inner::bootstrap` functions need to know. They are idempotent: a second run changes nothing.
#[derive(Debug, Clone)]
pub struct Params {
    /// An administrator scoped to the project `admin`, for rules that ask who calls.
    pub admin: Caller,
    /// The user `demo` scoped to the project `demo`.
    pub demo: Caller,
    /// Id of the project `admin`.
    pub admin_project: String,
    /// Id of the project `demo`.
    pub demo_project: String,
    /// Id of the project `service`, owner of what belongs to the cloud itself.
    pub service_project: String,
    /// Subnet of the public network `public`.
    pub public_cidr: IpNet,
    /// Gateway of the public network on the host.
    pub public_gateway: Option<IpAddr>,
    /// Subnet of the demo project's network.
    pub demo_cidr: IpNet,
    /// Name servers of the demo subnet; empty means the host's own.
    pub dns: Vec<IpAddr>,
    /// Disk image for guests (raw or qcow2).
    pub guest_image: Option<PathBuf>,
}
