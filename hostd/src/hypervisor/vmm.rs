//! Our own monitor on KVM.
use super::{Adopted, Hypervisor, Kind, Machine, Plan, Seat};
use crate::resources::Resources;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::path::PathBuf;
use wire::Refused;

/// The hypervisor.
#[derive(Debug)]
pub struct Vmm {
    program: PathBuf,
    resources: Resources,
}

impl Vmm {
    /// One that runs this program.
    #[must_use]
    pub fn new(program: PathBuf, resources: Resources) -> Self {
        Self { program, resources }
    }
}
impl Hypervisor for Vmm {
    fn kind(&self) -> Kind {
        Kind::Vmm
    }
    fn start(&self, _plan: Plan) -> BoxFuture<'_, Result<Box<dyn Machine>, Refused>> {
        let refused = Refused::unavailable(format!(
            "{} with {:?} cannot serve machines yet",
            self.program.display(),
            self.resources
        ));
        futures::future::ready(Err(refused)).boxed()
    }
    fn adopt(&self, _seat: Seat, _pid: Option<i32>) -> BoxFuture<'_, Result<Adopted, Refused>> {
        futures::future::ready(Ok(Adopted::Gone)).boxed()
    }
}
