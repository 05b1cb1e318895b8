//! What can go wrong while packing, and running tools so that their failure explains itself.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why an image could not be made. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// Verb, as in "write".
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program of the build is not installed.
    #[error("{tool} is not installed: `apt-get install {package}` and run this again")]
    ToolMissing {
        /// Program name.
        tool: String,
        /// Debian package that holds it.
        package: &'static str,
    },
    /// A program of the build failed.
    #[error("{tool} failed ({status}): {message}")]
    ToolFailed {
        /// Program name.
        tool: String,
        /// How it ended.
        status: String,
        /// Last lines that it printed.
        message: String,
    },
    /// Packages could not be fetched.
    #[error(
        "cannot fetch Debian packages ({packages}): {message}. Check the network and the sources that `apt-get update` uses; \
         on a machine without network, copy the package files (*.deb) into {} and run this again",
        cache.display()
    )]
    Mirror {
        /// The packages that were asked for.
        packages: String,
        /// What apt said last.
        message: String,
        /// Where packages are looked for first.
        cache: PathBuf,
    },
    /// A package lacks a file that the image needs.
    #[error("package {package} has no {path}: its layout changed, the list in the image crate has to follow")]
    PackageLayout {
        /// Package name.
        package: String,
        /// The missing path or pattern.
        path: String,
    },
    /// Something does not fit where it has to go.
    #[error("{what} is {bytes} bytes, at most {limit} fit")]
    TooLarge {
        /// What was measured.
        what: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// An argument or an input file is wrong.
    #[error("{0}")]
    Input(String),
}

impl Fault {
    /// For `map_err` on file operations.
    pub fn file<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::File { action, path: path.to_path_buf(), source }
    }
}

/// Program, and the Debian package to name when it is missing.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// Program name as found on the path.
    pub name: &'static str,
    /// Debian package that holds it.
    pub package: &'static str,
}

impl Tool {
    /// Runs the tool to its end and gives what it printed on standard output.
    ///
    /// # Errors
    /// When it is not installed or ends with anything but success; the message then holds its last lines.
    pub fn run<I, S>(self, arguments: I) -> Result<Vec<u8>, Fault>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new(self.name);
        command.args(arguments);
        self.run_command(command)
    }

    /// As [`Tool::run`], for a command that needs an environment or a working directory.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn run_command(self, mut command: Command) -> Result<Vec<u8>, Fault> {
        // Messages are read by people and by tests: not in the language of whoever builds.
        command.env("LC_ALL", "C").env("PATH", search_path()).stdin(Stdio::null());
        self.finish(&mut command)
    }

    /// As [`Tool::run`], with `input` as its standard input.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn run_with_input(self, mut command: Command, input: File) -> Result<Vec<u8>, Fault> {
        command.env("LC_ALL", "C").env("PATH", search_path()).stdin(input);
        self.finish(&mut command)
    }

    fn finish(self, command: &mut Command) -> Result<Vec<u8>, Fault> {
        let output = command.output().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                Fault::ToolMissing { tool: self.name.into(), package: self.package }
            }
            _ => Fault::File { action: "run", path: self.name.into(), source },
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let text = [output.stderr, output.stdout].concat();
        Err(Fault::ToolFailed {
            tool: self.name.into(),
            status: output.status.to_string(),
            message: last_lines(&String::from_utf8_lossy(&text), 6),
        })
    }
}

/// The search path with the administrator's folders, which a plain user's may lack though `mkfs` lives there.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// The last `count` lines that are not empty, joined by semicolons.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::{Fault, Tool};

    #[test]
    fn a_missing_tool_names_its_package() {
        let tool = Tool { name: "no-such-program-here", package: "some-package" };
        let fault = tool.run(["x"]).expect_err("no such program");
        assert!(fault.to_string().contains("apt-get install some-package"), "{fault}");
    }

    #[test]
    fn a_failed_tool_shows_its_last_words() {
        let tool = Tool { name: "sh", package: "dash" };
        let fault = tool.run(["-c", "echo first; echo the reason >&2; exit 3"]).expect_err("exit 3");
        let Fault::ToolFailed { status, message, .. } = fault else { panic!("{fault}") };
        assert!(status.contains('3') && message.contains("the reason"), "{status} {message}");
    }
}
