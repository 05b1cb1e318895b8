//! Rebuild, resize, rescue and what takes them back: what can be known before the answer is checked before it.

use super::create::{
    CONFIG_ROOM, address, fits, flavor, kernel, stored_image, strings, text, truth, usable_image,
};
use super::{busy, check, placing, quota, reread};
use crate::app::App;
use crate::compute::records::keypairs;
use crate::compute::records::servers::{self, Disk, Disks, Image, Key, Server};
use crate::compute::records::shape::{Mode, Shape, unused};
use crate::compute::state::Vm;
use crate::compute::tasks::{self, ConfirmResize, Plan, Remake, What};
use crate::compute::{hardware, micro};
use api_kit::{Call, Caller, Fault};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use wire::ids::ServerId;

/// States that a server may be in for most of these.
const WHOLE: &[Vm] = &[Vm::Active, Vm::Stopped];
/// The same, and broken.
const ANY: &[Vm] = &[Vm::Active, Vm::Stopped, Vm::Error];

/// Refuses by state before anything else is looked at, as upstream does.
async fn allowed(call: &Call<App>, server: &Server, name: &str, states: &[Vm]) -> Result<(), Fault> {
    let state = super::state_of(&call.app.store, server).await?;
    check(server, state, name, states, &call.caller)
}

/// Writes what `how` makes of the server, and the task that sees it through.
async fn begin<F>(
    app: &App,
    caller: &Caller,
    id: ServerId,
    (name, states): (&'static str, &'static [Vm]),
    how: F,
) -> Result<(), Fault>
where
    F: Fn(&mut Server, bool) -> Result<Plan, Fault> + Send + Sync,
{
    let how = &how;
    app.store
        .tx(|tx| async move {
            let (mut server, state) = reread(&tx, id).await?;
            check(&server, state, name, states, caller)?;
            if server.launched_at.is_none() {
                return Err(Fault::conflict(format!(
                    "Cannot '{name}' instance {id} while it is in vm_state {}",
                    state.vm.as_str()
                )));
            }
            let was = server.body.flavor.clone();
            let plan = how(&mut server, state.vm != Vm::Stopped && state.power != 4)?;
            let used = servers::used(&tx, &server.project_id).await?;
            let new = &plan.to.flavor;
            for (what, in_use, more) in [
                ("cores", used.cores, i64::from(new.vcpus) - i64::from(was.vcpus)),
                ("ram", used.ram, i64::from(new.memory_mb) - i64::from(was.memory_mb)),
            ] {
                if more > 0 {
                    let project = &server.project_id;
                    api_kit::quota::check(&tx, "compute", project, quota(what), in_use, more).await?;
                }
            }
            server.body.fault = None;
            servers::put(&tx, &server).await?;
            let first = Remake::Halt { server: id, plan: Box::new(plan) };
            app.tasks
                .enqueue(&tx, &tasks::subject(id), &first)
                .await
                .map_err(|error| busy(error, name, id))?;
            Ok(())
        })
        .await?;
    app.tasks.wake();
    Ok(())
}

/// New disks for a server that starts from this image.
fn fresh(server: &Server, image: &Image, keep_ephemeral: bool) -> Disks {
    let flavor = &server.body.flavor;
    let whole = image.virtual_bytes.div_ceil(512) * 512;
    let old = &server.body.disks;
    let anew = |disk: &Option<Disk>| disk.as_ref().map(|disk| Disk::planned(disk.bytes));
    let data = server.body.user_data.as_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(0));
    Disks {
        root: Some(Disk::planned(if flavor.disk_gb == 0 { whole } else { u64::from(flavor.disk_gb) << 30 })),
        ephemeral: if keep_ephemeral { old.ephemeral.clone() } else { anew(&old.ephemeral) },
        swap: anew(&old.swap),
        config: server.body.config_drive.then(|| Disk::planned(CONFIG_ROOM + data.div_ceil(512) * 1024)),
    }
}

fn volume_backed(server: &Server, what: &str) -> Result<(), Fault> {
    if server.body.disks.root.is_some() {
        return Ok(());
    }
    Err(Fault::bad_request(format!("Unable to {what}: the server starts from a volume.")))
}

/// Makes a server anew from an image, under the same name and with the same addresses.
///
/// # Errors
/// Nova's 400s, 404, 409 by state.
pub async fn rebuild(call: &Call<App>, server: &Server) -> Result<(), Fault> {
    let (app, body) = (&call.app, call.inner("rebuild"));
    allowed(call, server, "rebuild", ANY).await?;
    volume_backed(server, "rebuild with a different image for a volume-backed server")?;
    let reference = text(body, "imageRef").unwrap_or_default();
    let id = reference.trim_end_matches('/').rsplit('/').next().unwrap_or(reference);
    let image = stored_image(usable_image(app, &call.caller, id).await.map_err(|fault| {
        if fault.message.starts_with("Can not find") {
            Fault::bad_request("Cannot find image for rebuild")
        } else {
            fault
        }
    })?);
    fits(&server.body.flavor, &image, true)?;
    hardware::of(&server.body.flavor, Some(&image))?;
    let key = match body.get("key_name") {
        None => None,
        Some(Value::Null) => Some(None),
        Some(name) => {
            let name = name.as_str().unwrap_or_default();
            let found = keypairs::get(&app.store, &server.user_id, name).await?;
            let found = found.ok_or_else(|| Fault::bad_request("Invalid key_name provided."))?;
            Some(Some(Key { name: found.name, kind: found.kind, public_key: found.public_key }))
        }
    };
    let user_data = match body.get("user_data") {
        None => None,
        Some(Value::Null) => Some(None),
        Some(data) => {
            let plain: String = data.as_str().unwrap_or_default().split_ascii_whitespace().collect();
            if BASE64.decode(&plain).is_err() {
                return Err(Fault::bad_request("User data needs to be valid base 64."));
            }
            Some(Some(plain))
        }
    };
    let (ipv4, ipv6) = (address(body, "accessIPv4")?, address(body, "accessIPv6")?);
    let metadata = body.get("metadata").map(|_| strings(body.get("metadata")));
    let keep = truth(body.get("preserve_ephemeral"));
    let (image, key, user_data, metadata) = (&image, &key, &user_data, &metadata);
    begin(app, &call.caller, server.id, ("rebuild", ANY), |server, ran| {
        let from = Shape::of(server);
        if let Some(name) = text(body, "name") {
            name.trim().clone_into(&mut server.name);
        }
        if body.get("description").is_some() {
            server.body.description = text(body, "description").map(str::to_owned);
        }
        if let Some(name) = text(body, "hostname").filter(|_| call.version >= micro::HOSTNAME) {
            name.clone_into(&mut server.body.hostname);
        }
        if body.get("accessIPv4").is_some() {
            server.body.access_ipv4 = ipv4;
        }
        if body.get("accessIPv6").is_some() {
            server.body.access_ipv6 = ipv6;
        }
        if let Some(metadata) = metadata {
            server.body.metadata.clone_from(metadata);
        }
        if let Some(key) = key {
            server.key_name = key.as_ref().map(|key| key.name.clone());
            server.body.key.clone_from(key);
        }
        if let Some(data) = user_data {
            server.body.user_data.clone_from(data);
        }
        // What users see is the new image from now on, as upstream has it; the task brings the old one back if it fails.
        server.image_id = Some(image.id.clone());
        let to = Shape {
            flavor: from.flavor.clone(),
            image: Some(image.clone()),
            disks: fresh(server, image, keep),
            kernel: kernel(Some(image)),
        };
        let root = Some((image.blob, image.format.clone()));
        Ok(Plan {
            what: What::Rebuild,
            ran,
            run: ran,
            from,
            to,
            from_mode: Mode::Plain,
            to_mode: Mode::Plain,
            from_aside: None,
            to_aside: None,
            root,
        })
    })
    .await
}

/// Gives a server another flavor. What it was is kept until it is confirmed or reverted.
///
/// # Errors
/// Nova's 400s, 403 over quota, 404, 409 by state.
pub async fn resize(call: &Call<App>, server: &Server) -> Result<(), Fault> {
    let (app, body) = (&call.app, call.inner("resize"));
    allowed(call, server, "resize", WHOLE).await?;
    let reference = text(body, "flavorRef").unwrap_or_default();
    let new = flavor(app, &call.caller, reference).await?;
    let old = &server.body.flavor;
    if new.id == old.id {
        return Err(Fault::bad_request("When resizing, instances must change flavor!"));
    }
    if let Some(image) = &server.body.image {
        fits(&new, image, server.body.disks.root.is_some())?;
    }
    hardware::of(&new, server.body.image.as_ref())?;
    if server.body.disks.root.is_some() && new.disk_gb == 0 && old.disk_gb != 0 {
        return Err(Fault::bad_request("Resize to zero disk flavor is not allowed."));
    }
    let smaller = |what: &str| {
        Fault::bad_request(format!("Unable to resize {what} down: the disk of the new flavor is smaller."))
    };
    let bytes = |disk: &Option<Disk>| disk.as_ref().map_or(0, |disk| disk.bytes);
    let (root, ephemeral) = (u64::from(new.disk_gb) << 30, u64::from(new.ephemeral_gb) << 30);
    if server.body.disks.root.is_some() && new.disk_gb != 0 && root < bytes(&server.body.disks.root) {
        return Err(smaller("disk"));
    }
    if ephemeral < bytes(&server.body.disks.ephemeral) {
        return Err(smaller("ephemeral disk"));
    }
    let new = &new;
    begin(app, &call.caller, server.id, ("resize", WHOLE), |server, ran| {
        let from = Shape::of(server);
        let sized = |old: &Option<Disk>, bytes: u64| {
            (bytes > 0).then(|| match old {
                Some(old) => Disk::planned(bytes.max(old.bytes)),
                None => Disk::planned(bytes),
            })
        };
        let old = &from.disks;
        let disks = Disks {
            root: old.root.as_ref().map(|old| Disk::planned(root.max(old.bytes))),
            ephemeral: sized(&old.ephemeral, ephemeral),
            // Swap holds nothing that lasts, so it may be made smaller.
            swap: (new.swap_mb > 0)
                .then(|| Disk::planned((u64::from(new.swap_mb) << 20).max(bytes(&old.swap)))),
            config: old.config.clone(),
        };
        let to = Shape { flavor: new.clone(), disks, ..from.clone() };
        Ok(Plan {
            what: What::Resize,
            ran,
            run: ran,
            to_aside: Some(from.clone()),
            from,
            to,
            from_mode: Mode::Plain,
            to_mode: Mode::Resized,
            from_aside: None,
            root: None,
        })
    })
    .await
}

fn aside(server: &Server) -> Result<Shape, Fault> {
    let kept = server.body.aside.as_deref().cloned();
    kept.ok_or_else(|| Fault::internal(format!("server {} has nothing put aside", server.id)))
}

/// Takes a resize back: the server is what it was, disks included.
///
/// # Errors
/// 404, 409 by state.
pub async fn revert(app: &App, caller: &Caller, id: ServerId) -> Result<(), Fault> {
    begin(app, caller, id, ("revertResize", &[Vm::Resized]), |server, ran| {
        let (from, to) = (Shape::of(server), aside(server)?);
        Ok(Plan {
            what: What::Revert,
            ran,
            run: ran,
            from,
            from_aside: Some(to.clone()),
            to,
            from_mode: Mode::Resized,
            to_mode: Mode::Plain,
            to_aside: None,
            root: None,
        })
    })
    .await
}

/// Lets go of what a server was before its resize.
///
/// # Errors
/// 404, 409 by state.
pub async fn confirm(app: &App, caller: &Caller, id: ServerId) -> Result<(), Fault> {
    let placed = app
        .store
        .tx(|tx| async move {
            let (mut server, state) = reread(&tx, id).await?;
            check(&server, state, "confirmResize", &[Vm::Resized], caller)?;
            let kept = aside(&server)?;
            server.mode = Mode::Plain;
            server.body.aside = None;
            servers::put(&tx, &server).await?;
            let disks = unused(&kept.disks, &server.body.disks, None);
            let first = ConfirmResize::Clean { server: id, disks };
            let enqueued = app.tasks.enqueue(&tx, &tasks::subject(id), &first).await;
            enqueued.map_err(|error| busy(error, "confirmResize", id))?;
            Ok::<_, Fault>(server)
        })
        .await?;
    app.tasks.wake();
    // It only shrinks. When this fails the server holds more than it needs until its next change.
    if let Err(stop) = placing::hold(app, &placed, &[&Shape::of(&placed)]).await {
        tracing::warn!(server = %id, %stop, "a confirmed resize still holds what it had before");
    }
    Ok(())
}

/// Starts a server from another image's disk, its own disk beside it.
///
/// # Errors
/// Nova's 400s, 404, 409 by state.
pub async fn rescue(call: &Call<App>, server: &Server) -> Result<(), Fault> {
    let (app, body) = (&call.app, call.inner("rescue"));
    allowed(call, server, "rescue", ANY).await?;
    volume_backed(server, "rescue")?;
    let image = match text(body, "rescue_image_ref").or(server.image_id.as_deref()) {
        Some(reference) => {
            let id = reference.trim_end_matches('/').rsplit('/').next().unwrap_or(reference);
            stored_image(usable_image(app, &call.caller, id).await?)
        }
        None => {
            return Err(Fault::bad_request("Cannot find image for rescue: name one with rescue_image_ref."));
        }
    };
    let image = &image;
    begin(app, &call.caller, server.id, ("rescue", ANY), |server, ran| {
        let from = Shape::of(server);
        let bytes = image.virtual_bytes.div_ceil(512) * 512;
        let disks = Disks { root: Some(Disk::planned(bytes)), ..from.disks.clone() };
        let to = Shape { disks, kernel: kernel(Some(image)), ..from.clone() };
        Ok(Plan {
            what: What::Rescue,
            ran,
            run: true,
            to_aside: Some(from.clone()),
            from,
            to,
            from_mode: Mode::Plain,
            to_mode: Mode::Rescued,
            from_aside: None,
            root: Some((image.blob, image.format.clone())),
        })
    })
    .await
}

/// Starts a server from its own disk again.
///
/// # Errors
/// 404, 409 by state.
pub async fn unrescue(app: &App, caller: &Caller, id: ServerId) -> Result<(), Fault> {
    begin(app, caller, id, ("unrescue", &[Vm::Rescued]), |server, ran| {
        let (from, to) = (Shape::of(server), aside(server)?);
        Ok(Plan {
            what: What::Unrescue,
            ran,
            run: true,
            from,
            from_aside: Some(to.clone()),
            to,
            from_mode: Mode::Rescued,
            to_mode: Mode::Plain,
            to_aside: None,
            root: None,
        })
    })
    .await
}
