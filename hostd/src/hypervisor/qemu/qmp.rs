//! QEMU's monitor protocol (QMP): JSON lines over a unix socket, answers by id, events between them.
#![allow(clippy::missing_panics_doc)]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio::task::JoinHandle;

/// How long QEMU may take for one command.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest line that is believed, in bytes.
const LINE_MAX: usize = 16 << 20;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused it.
    #[error("QEMU refused '{command}': {text}")]
    Refused {
        /// Which command.
        command: String,
        /// QEMU's class of the error.
        class: String,
        /// QEMU's words.
        text: String,
    },
    /// The connection is gone or QEMU hangs.
    #[error("QEMU does not answer: {0}")]
    Gone(String),
}

impl QmpError {
    /// Whether QEMU says that there is no such device.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "DeviceNotFound")
    }
}

/// What the reader has learnt from events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Grows with each event, and when the connection ends.
    pub count: u64,
    /// `reason` of the last `SHUTDOWN` event.
    pub shutdown: Option<String>,
    /// The connection ended.
    pub closed: bool,
}

type Answers = Arc<Mutex<BTreeMap<u64, oneshot::Sender<Value>>>>;

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: Arc<UnixStream>,
    /// Next id. Held while a command is sent, so that commands do not mix.
    next: AsyncMutex<u64>,
    answers: Answers,
    heard: watch::Receiver<Heard>,
    reader: JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Takes a connection over: reads the greeting and enters command mode.
    ///
    /// # Errors
    /// When QEMU does not greet in time.
    pub async fn open(stream: std::os::unix::net::UnixStream) -> Result<Self, QmpError> {
        let gone = |error: io::Error| QmpError::Gone(error.to_string());
        stream.set_nonblocking(true).map_err(gone)?;
        let stream = Arc::new(UnixStream::from_std(stream).map_err(gone)?);
        let (tell, heard) = watch::channel(Heard::default());
        let answers = Answers::default();
        let reader = tokio::spawn(read(stream.clone(), answers.clone(), tell));
        let qmp = Self { stream, next: AsyncMutex::new(0), answers, heard, reader };
        // QEMU takes no command before its greeting is out, so the answer to this is the greeting's proof too.
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// What events told.
    #[must_use]
    pub fn heard(&self) -> watch::Receiver<Heard> {
        self.heard.clone()
    }

    /// Runs a command.
    ///
    /// # Errors
    /// What QEMU refused, or that it is gone.
    pub async fn run(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run_with(command, arguments, None).await
    }

    /// Runs a command that takes a descriptor.
    ///
    /// # Errors
    /// As [`Qmp::run`].
    pub async fn run_with(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let (tell, answer) = oneshot::channel();
        let exchange = async {
            let id = {
                let mut next = self.next.lock().await;
                *next += 1;
                let line = json!({"execute": command, "arguments": arguments, "id": *next}).to_string();
                self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(*next, tell);
                self.send(format!("{line}\n").as_bytes(), fd)
                    .await
                    .map_err(|error| QmpError::Gone(error.to_string()))?;
                *next
            };
            let answer = answer.await.map_err(|_| QmpError::Gone("it closed the connection".into()));
            self.answers.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            answer
        };
        let mut answer = tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| {
            QmpError::Gone(format!("no answer to '{command}' within {} s", PATIENCE.as_secs()))
        })??;
        match answer.get_mut("error") {
            None => Ok(answer.get_mut("return").map_or(Value::Null, Value::take)),
            Some(error) => Err(QmpError::Refused {
                command: command.into(),
                class: error["class"].as_str().unwrap_or_default().into(),
                text: error["desc"].as_str().unwrap_or_default().into(),
            }),
        }
    }

    async fn send(&self, mut bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        use std::os::fd::AsRawFd;
        while !bytes.is_empty() {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let raw: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
                    let rights = [ControlMessage::ScmRights(&raw)];
                    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
                    let slices = [io::IoSlice::new(bytes)];
                    let socket = self.stream.as_fd().as_raw_fd();
                    Ok(sendmsg::<()>(socket, &slices, control, MsgFlags::MSG_NOSIGNAL, None)?)
                })
                .await?;
            // The descriptor went with the first byte.
            fd = None;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

async fn read(stream: Arc<UnixStream>, answers: Answers, tell: watch::Sender<Heard>) {
    let mut buffer: Vec<u8> = Vec::new();
    let mut chunk = vec![0u8; 16 << 10];
    while buffer.len() < LINE_MAX {
        if stream.readable().await.is_err() {
            break;
        }
        match stream.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => buffer.extend_from_slice(chunk.get(..got).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            if let Ok(value) = serde_json::from_slice::<Value>(&line) {
                take(value, &answers, &tell);
            }
        }
    }
    // Dropping the senders fails the commands that wait.
    answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    tell.send_modify(|heard| {
        heard.count += 1;
        heard.closed = true;
    });
}

fn take(value: Value, answers: &Answers, tell: &watch::Sender<Heard>) {
    if let Some(event) = value.get("event").and_then(Value::as_str) {
        tell.send_modify(|heard| {
            heard.count += 1;
            if event == "SHUTDOWN" {
                heard.shutdown = Some(value["data"]["reason"].as_str().unwrap_or_default().to_owned());
            }
        });
    } else if let Some(id) = value.get("id").and_then(Value::as_u64)
        && let Some(answer) = answers.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    {
        let _ = answer.send(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    /// A QEMU that answers each command with what the script says for it.
    fn pretend(answer: impl Fn(&str, u64) -> String + Send + 'static) -> std::os::unix::net::UnixStream {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut write = theirs.try_clone().unwrap();
            writeln!(write, r#"{{"QMP": {{"version": {{}}, "capabilities": []}}}}"#).unwrap();
            for line in BufReader::new(theirs).lines() {
                let Ok(line) = line else { return };
                let call: Value = serde_json::from_str(&line).unwrap();
                let text = answer(call["execute"].as_str().unwrap(), call["id"].as_u64().unwrap());
                if text.is_empty() || write.write_all(text.as_bytes()).is_err() {
                    return;
                }
            }
        });
        ours
    }

    #[tokio::test]
    async fn answers_events_refusals_and_the_end_are_told_apart() {
        let qmp = Qmp::open(pretend(|command, id| match command {
            "stop" => format!(
                "{{\"event\": \"STOP\"}}\n{{\"event\": \"SHUTDOWN\", \"data\": {{\"reason\": \"guest-reset\"}}}}\nnonsense\n{{\"return\": {{\"x\": 1}}, \"id\": {id}}}\n"
            ),
            "device_del" => format!(
                "{{\"error\": {{\"class\": \"DeviceNotFound\", \"desc\": \"Device 'd' not found\"}}, \"id\": {id}}}\n"
            ),
            "quit" => String::new(),
            _ => format!("{{\"return\": {{}}, \"id\": {id}}}\n"),
        }))
        .await
        .unwrap();
        assert_eq!(qmp.run("stop", json!({})).await.unwrap(), json!({"x": 1}));
        let heard = qmp.heard().borrow().clone();
        assert_eq!((heard.count, heard.shutdown.as_deref()), (2, Some("guest-reset")));
        let error = qmp.run("device_del", json!({"id": "d"})).await.unwrap_err();
        assert!(error.is_missing() && error.to_string().contains("not found"), "{error}");
        assert!(matches!(qmp.run("quit", json!({})).await, Err(QmpError::Gone(_))));
        let mut heard = qmp.heard();
        heard.wait_for(|heard| heard.closed).await.unwrap();
    }
}
