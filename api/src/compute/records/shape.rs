//! What a rebuild, a resize or a rescue exchanges of a server.

use super::flavors::Flavor;
use super::servers::{Disk, Disks, Image, Kernel, Server};
use base::store::StoreError;
use serde::{Deserialize, Serialize};
use wire::ids::DiskId;

/// What a server is beside its plain life: something was put aside for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing.
    #[default]
    Plain,
    /// It was resized, and what it was is kept until its owner says that it may go.
    Resized,
    /// It runs from another disk, its own beside it.
    Rescued,
    /// It is an image, and nothing of it is on a host.
    Offloaded,
}

impl Mode {
    /// Its name in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Resized => "resized",
            Self::Rescued => "rescued",
            Self::Offloaded => "shelved_offloaded",
        }
    }

    /// The mode of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Plain, Self::Resized, Self::Rescued, Self::Offloaded]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| StoreError::Shape(format!("'{text}' is no mode of a server")))
    }
}

/// What can be exchanged of a server that is off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Its size.
    pub flavor: Flavor,
    /// Its image.
    pub image: Option<Image>,
    /// Its own disks.
    pub disks: Disks,
    /// Kernel and initrd beside the disk.
    pub kernel: Option<Kernel>,
}

impl Shape {
    /// What a server is now.
    #[must_use]
    pub fn of(server: &Server) -> Self {
        let body = &server.body;
        Self {
            flavor: body.flavor.clone(),
            image: body.image.clone(),
            disks: body.disks.clone(),
            kernel: body.kernel.clone(),
        }
    }

    /// Makes a server so.
    pub fn put(&self, server: &mut Server) {
        server.body.flavor = self.flavor.clone();
        server.body.image.clone_from(&self.image);
        server.body.disks = self.disks.clone();
        server.body.kernel.clone_from(&self.kernel);
        if let Some(image) = &self.image {
            server.image_id = Some(image.id.clone());
        }
    }
}

/// Every disk in the pool that is a server's own, also those that were put aside.
pub fn disks(server: &Server) -> impl Iterator<Item = &Disk> {
    let aside = server.body.aside.iter().flat_map(|shape| shape.disks.all());
    let own = server.body.disks.all();
    own.chain(aside.filter(|disk| !server.body.disks.all().any(|own| own.id == disk.id)))
}

/// The disks of `these` that no server in this shape, with this put aside, has any use for.
#[must_use]
pub fn unused(these: &Disks, by: &Disks, aside: Option<&Shape>) -> Vec<DiskId> {
    let used = |id: DiskId| {
        by.all().any(|disk| disk.id == id)
            || aside.is_some_and(|shape| shape.disks.all().any(|disk| disk.id == id))
    };
    these.all().map(|disk| disk.id).filter(|id| !used(*id)).collect()
}
