//! The daemon's socket: every call of [`wire::block`], blob streams, health and metrics.

use crate::config::Config;
use crate::image::convert::{self, Program};
use crate::object::{self, receive};
use crate::pool::{Held, Pool, Thing};
use crate::volume;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base::CancellationToken;
use base::metrics::Metrics;
use base::rpc::{Allow, Router, listen, refuse};
use serde::Deserialize;
use std::sync::Arc;
use wire::block::{
    BlobInfo, DescribeBlob, DiskSource, EnsureBlobFromDisk, EnsureDisk, EnsureRaw, EnsureSnapshot,
    ForgetBlob, ForgetDisk, ForgetSnapshot, InspectImage, ListPool,
};
use wire::cloud::Attest;
use wire::ids::BlobId;
use wire::{Health, HealthReport, Refused};

/// What the handlers share.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// The pool.
    pub pool: Arc<Pool>,
    /// The program that parses images.
    pub program: Program,
    metrics: Metrics,
}

/// Serves the socket until cancelled.
///
/// # Errors
/// When the pool or the socket is not usable.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // The socket says who is allowed; files are for this user and, for the daemon that opens disks, its group.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o007));
    let pool = Arc::new(Pool::open(&config)?);
    let daemon = Daemon { pool: pool.clone(), program: Program::own(), metrics: Metrics::default() };
    let socket = config.run_dir.join("blockd.sock");
    let allow = Allow::own().and(config.allow_uids.iter().copied());
    // The mode lets everyone connect; the kernel's word on the caller's uid decides.
    let serving =
        listen(&socket, 0o666, router(daemon), allow.clone(), shutdown.clone()).map_err(|error| {
            Refused::unavailable(format!("cannot listen at {}: {error}", socket.display()))
                .remedy("make the directory and let this user write to it")
        })?;
    let files = config.run_dir.join("blockd.fd.sock");
    let handing_out = crate::fd_server::listen(&files, pool, allow, shutdown).map_err(|error| {
        Refused::unavailable(format!("cannot listen at {}: {error}", files.display()))
            .remedy("make the directory and let this user write to it")
    })?;
    base::daemon::notify_ready();
    tokio::join!(serving, handing_out);
    Ok(())
}

/// The routes of the daemon.
#[must_use]
pub fn router(daemon: Daemon) -> Router {
    let plain = axum::Router::new()
        .route("/v1/blob/{id}", axum::routing::put(put_blob))
        .route("/metrics", axum::routing::get(metrics))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(daemon.clone());
    let with = move || daemon.clone();
    let (a, b, c, d, e, f) = (with(), with(), with(), with(), with(), with());
    let (g, h, i, j, k, l) = (with(), with(), with(), with(), with(), with());
    Router::new()
        .plain(plain)
        .serve(move |_: Health| a.clone().health())
        .serve(move |call: EnsureDisk| b.clone().ensure_disk(call))
        .serve(move |call: EnsureRaw| c.clone().ensure_raw(call))
        .serve(move |call: ForgetDisk| d.clone().forget_disk(call))
        .serve(move |call: EnsureSnapshot| e.clone().ensure_snapshot(call))
        .serve(move |call: ForgetSnapshot| f.clone().forget_snapshot(call))
        .serve(move |call: EnsureBlobFromDisk| g.clone().ensure_blob(call))
        .serve(move |call: DescribeBlob| h.clone().describe(call))
        .serve(move |call: ForgetBlob| i.clone().forget_blob(call))
        .serve(move |call: InspectImage| j.clone().inspect(call))
        .serve(move |call: Attest| {
            l.clone().blocking(Vec::new(), move |daemon| daemon.pool.owner.attest(call))
        })
        .serve(move |_: ListPool| {
            let daemon = k.clone();
            async move { daemon.blocking(Vec::new(), |daemon| daemon.pool.list()).await }
        })
}

impl Daemon {
    /// A daemon over a pool, whose images are parsed by `program`.
    #[must_use]
    pub fn new(pool: Arc<Pool>, program: Program) -> Self {
        Self { pool, program, metrics: Metrics::default() }
    }

    /// Runs work that blocks, to its end even when the caller goes away, holding these locks.
    async fn blocking<T: Send + 'static>(
        self,
        held: Vec<Held>,
        work: impl FnOnce(&Self) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        tokio::task::spawn_blocking(move || {
            let outcome = work(&self);
            drop(held);
            outcome
        })
        .await
        .map_err(|error| Refused::internal(format!("the work died: {error}")))?
    }

    /// The same for work that takes a processor for a while: only a few at a time.
    async fn heavy<T: Send + 'static>(
        self,
        held: Vec<Held>,
        work: impl FnOnce(&Self) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let permit = self.pool.heavy.clone().acquire_owned().await;
        self.blocking(held, move |daemon| {
            let outcome = work(daemon);
            drop(permit);
            outcome
        })
        .await
    }

    async fn health(self) -> Result<HealthReport, Refused> {
        self.blocking(Vec::new(), |daemon| {
            let pool = &daemon.pool;
            let (free, total) = pool.space()?;
            let mut troubles = Vec::new();
            if let Err(refused) = pool.room_for(1) {
                troubles.push(refused.to_string());
            }
            if !pool.reflinks {
                troubles.push(
                    "the pool's file system has no reflinks: clones and snapshots are full copies; put it on XFS"
                        .to_owned(),
                );
            }
            Ok(HealthReport {
                daemon: "blockd".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                troubles,
                facts: vec![
                    ("pool total MiB".to_owned(), (total >> 20).to_string()),
                    ("pool free MiB".to_owned(), (free >> 20).to_string()),
                ],
            })
        })
        .await
    }

    async fn ensure_disk(self, call: EnsureDisk) -> Result<wire::block::DiskInfo, Refused> {
        if matches!(call.source, DiskSource::Disk { disk } if disk == call.id) {
            return Err(Refused::invalid("a disk cannot be made from itself"));
        }
        let work = |call| move |daemon: &Self| volume::ensure(&daemon.pool, &daemon.program, &call);
        // A disk that exists needs neither its source nor a turn.
        let held = vec![self.pool.locks.take(call.id).await];
        if self.pool.disk(call.id).exists() {
            return self.blocking(held, work(call)).await;
        }
        drop(held);
        let things = source_thing(&call.source).into_iter().chain([call.id.into()]);
        let held = self.pool.locks.take_all(things).await;
        if matches!(call.source, DiskSource::Image { .. }) {
            self.heavy(held, work(call)).await
        } else {
            self.blocking(held, work(call)).await
        }
    }

    async fn ensure_raw(self, call: EnsureRaw) -> Result<wire::block::DiskInfo, Refused> {
        let held = vec![self.pool.locks.take(call.blob).await];
        self.heavy(held, move |daemon| {
            convert::ensure_raw(&daemon.pool, &daemon.program, call.blob, &call.format)
        })
        .await
    }

    async fn forget_disk(self, call: ForgetDisk) -> Result<(), Refused> {
        let held = vec![self.pool.locks.take(call.id).await];
        self.blocking(held, move |daemon| {
            daemon.pool.owner.permits(&call.by)?;
            daemon.pool.remove(&daemon.pool.disk(call.id)).map(drop)
        })
        .await
    }

    async fn ensure_snapshot(self, call: EnsureSnapshot) -> Result<wire::block::DiskInfo, Refused> {
        let held = self.pool.locks.take_all([call.id.into(), call.disk.into()]).await;
        self.blocking(held, move |daemon| volume::ensure_snapshot(&daemon.pool, &call)).await
    }

    async fn forget_snapshot(self, call: ForgetSnapshot) -> Result<(), Refused> {
        let held = vec![self.pool.locks.take(call.id).await];
        self.blocking(held, move |daemon| {
            daemon.pool.owner.permits(&call.by)?;
            daemon.pool.remove(&daemon.pool.snapshot(call.id)).map(drop)
        })
        .await
    }

    async fn ensure_blob(self, call: EnsureBlobFromDisk) -> Result<BlobInfo, Refused> {
        let things = source_thing(&call.source).into_iter().chain([call.blob.into()]);
        let held = self.pool.locks.take_all(things).await;
        self.heavy(held, move |daemon| {
            convert::ensure_blob(&daemon.pool, &daemon.program, call.blob, &call.source, &call.format)
        })
        .await
    }

    async fn describe(self, call: DescribeBlob) -> Result<BlobInfo, Refused> {
        self.blocking(Vec::new(), move |daemon| object::describe(&daemon.pool, call.id)).await
    }

    async fn forget_blob(self, call: ForgetBlob) -> Result<(), Refused> {
        let held = vec![self.pool.locks.take(call.id).await];
        self.blocking(held, move |daemon| {
            daemon.pool.owner.permits(&call.by)?;
            object::forget(&daemon.pool, call.id)
        })
        .await
    }

    async fn inspect(self, call: InspectImage) -> Result<wire::block::ImageFacts, Refused> {
        let held = vec![self.pool.locks.take(call.blob).await];
        self.heavy(held, move |daemon| {
            convert::inspect(&daemon.pool, &daemon.program, call.blob, &call.format)
        })
        .await
    }
}

/// What must stand still while something is made from this source.
fn source_thing(source: &DiskSource) -> Option<Thing> {
    match source {
        DiskSource::Blank | DiskSource::Files { .. } => None,
        DiskSource::Image { blob, .. } => Some((*blob).into()),
        DiskSource::Snapshot { snapshot } => Some((*snapshot).into()),
        DiskSource::Disk { disk } => Some((*disk).into()),
    }
}

#[derive(Debug, Deserialize)]
struct PutQuery {
    #[serde(default)]
    sha512: u8,
}

async fn put_blob(
    State(daemon): State<Daemon>,
    Path(id): Path<String>,
    Query(query): Query<PutQuery>,
    request: Request,
) -> Response {
    let announced = length_of(request.headers());
    let outcome = match parse(&id) {
        Ok(id) => {
            receive(daemon.pool, id, announced, query.sha512 != 0, request.into_body().into_data_stream())
                .await
        }
        Err(refused) => Err(refused),
    };
    match outcome {
        Ok(info) => axum::Json(info).into_response(),
        Err(refused) => refuse(&refused),
    }
}

async fn metrics(State(daemon): State<Daemon>) -> String {
    daemon.metrics.render()
}

fn parse(id: &str) -> Result<BlobId, Refused> {
    id.parse().map_err(|_| Refused::invalid("a blob id is a UUID"))
}

fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
